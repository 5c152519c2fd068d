"""Figures of a whole split of tokens, counted file by file: usage, perplexity, unigram bits, verdict."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.tokens.dataset import TokenDataset, TokenSplit
from tokenizer import CodebookHealth, CodeGrids, LevelUsage, OverallHealth, code_axes, overall_health

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class TokenWindow:
    """The tokens that figures are measured on: `rows` rows of the split `name`, on `grids`, coarse to fine.

    `read()` gives them in chunks (rows, tokens) of unsigned integers, each time from the first row on.
    """

    name: str
    rows: int
    grids: CodeGrids
    read: Callable[[], Iterable[np.ndarray]]

    def codes(self, tokens: np.ndarray) -> Tensor:
        """Codes (b, *code_axes) int64 of rows of tokens."""
        return torch.from_numpy(tokens.astype(np.int64)).view(-1, *code_axes(self.grids))

    def columns(self, level: int) -> slice:
        """Where the codes of a level stand in a row of tokens."""
        start = sum(grid.length for grid in self.grids[:level])
        return slice(start, start + self.grids[level].length)


def window_of(split: TokenSplit) -> TokenWindow:
    return TokenWindow(split.name, len(split), split.spec.code_grids, split.chunks)


def window_in_memory(name: str, tokens: np.ndarray, grids: CodeGrids) -> TokenWindow:
    return TokenWindow(name, len(tokens), grids, lambda: [tokens])


def codebook_health(
    window: TokenWindow, embeddings: Sequence[Tensor | None] | None = None
) -> tuple[CodebookHealth, ...]:
    """Of each level usage, perplexity, dead codes and a verdict over every token; near-duplicates too if given the
    embeddings.

    ValueError for a window without tokens.
    """
    return count_codes(window, window.read()).report(embeddings)


def count_codes(window: TokenWindow, chunks: Iterable[np.ndarray]) -> LevelUsage:
    """How often each code occurs in the chunks."""
    usage = LevelUsage(window.grids)
    for chunk in chunks:
        for start in range(0, len(chunk), ROWS_AT_ONCE):
            usage.update(window.codes(chunk[start : start + ROWS_AT_ONCE]))
    return usage


def unigram_bits(counts: Tensor) -> float:
    """Entropy in bits of the frequencies of the codes: bits per token of the best model without any context.

    `counts` (q, K) or (K,); the codes of all quantizers are counted together.
    """
    total = counts.reshape(-1, counts.shape[-1]).sum(0).double()
    share = total[total > 0] / total.sum()
    return float(-(share * share.log2()).sum())


def mean_unigram_bits(levels: Sequence[CodebookHealth]) -> float:
    """`unigram_bits` of the levels, each counted by its tokens."""
    if len(levels) == 1:
        return unigram_bits(levels[0].counts)
    total = sum(level.tokens for level in levels)
    return sum(level.tokens * unigram_bits(level.counts) for level in levels) / total


def refuse_collapsed(dataset: TokenDataset, split: str = "train") -> OverallHealth:
    """The health of the codebooks on `split` (the first there is if it has none of that name).

    Raises:
        UserError: the verdict is "collapsed": a prior on these tokens could only repeat a few tiles.
    """
    name = split if split in dataset.splits else dataset.splits[0]
    health = overall_health(codebook_health(window_of(dataset.split(name))))
    if health.verdict == "collapsed":
        raise UserError(
            f"{dataset.folder}: the codebook has collapsed on split {name!r}: {health.reason} (perplexity "
            f"{health.perplexity:.1f} of {dataset.spec.most_codes} codes, {health.usage:.1%} used). Train the "
            "tokenizer again (restart of dead codes, fewer channels, a smaller codebook), then encode again"
        )
    return health
