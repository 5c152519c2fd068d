"""Figures of a whole split of tokens, counted file by file: usage, perplexity, unigram bits, verdict."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.tokens.dataset import TokenDataset, TokenSplit
from tokenizer.codebook_health import CodebookHealth, CodeUsage

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class TokenWindow:
    """The tokens that figures are measured on: `rows` rows of the split `name`, of `grid` (h, w, q).

    `read()` gives them in chunks (rows, h*w*q) of unsigned integers, each time from the first row on.
    """

    name: str
    rows: int
    grid: tuple[int, int, int]
    num_codes: int
    read: Callable[[], Iterable[np.ndarray]]

    def codes(self, tokens: np.ndarray) -> Tensor:
        """(b, h, w, q) int64 of (b, h*w*q)."""
        return torch.from_numpy(tokens.astype(np.int64)).view(-1, *self.grid)


def window_of(split: TokenSplit) -> TokenWindow:
    return TokenWindow(split.name, len(split), split.spec.grid, split.spec.num_codes, split.chunks)


def window_in_memory(name: str, tokens: np.ndarray, grid: tuple[int, int, int], num_codes: int) -> TokenWindow:
    return TokenWindow(name, len(tokens), grid, num_codes, lambda: [tokens])


def codebook_health(window: TokenWindow, embedding: Tensor | None = None) -> CodebookHealth:
    """Usage, perplexity, dead codes and a verdict over every token; near-duplicates too if given the embedding.

    ValueError for a window without tokens.
    """
    return count_codes(window, window.read()).report(embedding)


def count_codes(window: TokenWindow, chunks: Iterable[np.ndarray]) -> CodeUsage:
    """How often each code occurs in the chunks."""
    usage = CodeUsage(window.num_codes, window.grid[2])
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


def refuse_collapsed(dataset: TokenDataset, split: str = "train") -> CodebookHealth:
    """The health of the codebook on `split` (the first there is if it has none of that name).

    Raises:
        UserError: the verdict is "collapsed": a prior on these tokens could only repeat a few tiles.
    """
    name = split if split in dataset.splits else dataset.splits[0]
    health = codebook_health(window_of(dataset.split(name)))
    if health.verdict == "collapsed":
        raise UserError(
            f"{dataset.folder}: the codebook has collapsed on split {name!r}: {health.reason} (perplexity "
            f"{health.perplexity:.1f} of {dataset.spec.num_codes} codes, {health.usage:.1%} used). Train the "
            "tokenizer again (k-means start, restart of dead codes, a smaller codebook), then encode again"
        )
    return health
