"""Figures of a whole split of tokens: usage, perplexity, unigram bits, verdict, and the quality of reconstructions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_grid
from pipelines.data import ImageDataset, Split
from pipelines.models.token_spec import TokenSpec
from pipelines.tokens.dataset import TokenDataset, TokenSplit
from pipelines.tokens.manifest import ManifestSplit, Stats
from tokenizer import Autoencoder, psnr
from tokenizer.codebook_health import CodebookHealth, CodeUsage

PSNR_IMAGES, SHOWN = 256, 10
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class TokenWindow:
    """The tokens a judgement rests on: `tokens` (rows, h*w*q) unsigned, `grid` (h, w, q), `name` of the split."""

    name: str
    tokens: np.ndarray
    grid: tuple[int, int, int]
    codebook_size: int

    def codes(self, rows: np.ndarray | slice) -> Tensor:
        """(b, h, w, q) int64."""
        return torch.from_numpy(self.tokens[rows].astype(np.int64)).view(-1, *self.grid)


def window_of(split: TokenSplit) -> TokenWindow:
    return TokenWindow(split.name, split.tokens, split.spec.grid, split.spec.codebook_size)


def codebook_health(window: TokenWindow, embedding: Tensor | None = None) -> CodebookHealth:
    """Usage, perplexity, dead codes and a verdict over every token; near-duplicates too if given the embedding."""
    usage = CodeUsage(window.codebook_size, window.grid[2])
    for start in range(0, len(window.tokens), ROWS_AT_ONCE):
        usage.update(window.codes(slice(start, start + ROWS_AT_ONCE)))
    return usage.report(embedding)


def unigram_bits(tokens: np.ndarray, codebook_size: int) -> float:
    """Entropy in bits of the frequencies of the codes: bits per token of the best model without any context."""
    counts = np.bincount(tokens.reshape(-1), minlength=codebook_size)
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(share * np.log2(share)).sum())


def split_statistics(
    folder: Path,
    spec: TokenSpec,
    name: Split,
    entry: ManifestSplit,
    model: Autoencoder,
    dataset: ImageDataset,
    picture: Path | None = None,
) -> Stats | None:
    """Statistics of a split, None if no row of it could be read. `picture` gets originals above reconstructions."""
    split = TokenSplit(folder, spec, name, entry)
    if len(split) == 0:
        return None
    health = codebook_health(window_of(split))
    originals, reconstructions = reconstruct_sample(model, dataset, PSNR_IMAGES, spec.compute.batch)
    if picture is not None:
        shown = [*originals[:SHOWN], *reconstructions[:SHOWN]]
        save_grid(picture, shown, columns=min(SHOWN, len(originals)), row_labels=("image", "tokens"))
    return Stats(
        codes_used=int(np.unique(split.tokens).size),
        perplexity=float(health.perplexity),
        unigram_bits=unigram_bits(split.tokens, spec.codebook_size),
        verdict=health.verdict,
        reason=health.reason,
        psnr_db=float(psnr(reconstructions, originals).mean()),
        psnr_images=len(originals),
    )


@torch.inference_mode()
def reconstruct_sample(model: Autoencoder, dataset: ImageDataset, n: int, batch: int) -> tuple[Tensor, Tensor]:
    """Up to n readable images (b, c, h, w) in [0, 1], evenly spread over the data set, and what the tokenizer keeps."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(n, len(dataset))).round().astype(int))
    images = dataset.read_pixels(rows).image
    if not len(images):
        raise UserError(f"data: none of {len(rows)} images could be read; expected some to measure reconstructions on")
    device = next(model.parameters()).device
    decoded = torch.cat([model.reconstruct(part.to(device)).cpu() for part in images.split(batch)])
    return images.float() / 255, decoded


def refuse_collapsed(dataset: TokenDataset, split: Split = "train") -> CodebookHealth:
    """The health of the codebook on `split` (the first there is if it has none of that name).

    Raises:
        UserError: the verdict is "collapsed": a prior on these tokens could only repeat a few tiles.
    """
    name = split if split in dataset.splits else dataset.splits[0]
    health = codebook_health(window_of(dataset.split(name)))
    if health.verdict == "collapsed":
        raise UserError(
            f"{dataset.folder}: the codebook has collapsed on split {name!r}: {health.reason} (perplexity "
            f"{health.perplexity:.1f} of {dataset.spec.codebook_size} codes, {health.usage:.1%} used). Train the "
            "tokenizer again (k-means start, restart of dead codes, a smaller codebook), then encode again"
        )
    return health
