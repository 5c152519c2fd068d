"""`smalti inspect --verify N`: encode N random rows of the original images again and compare."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.recipe_files import validate
from pipelines.data import DataConfig, Example, ImageDataset, Split, open_images
from pipelines.models.checkpoint import LoadedTokenizer
from pipelines.tokens.dataset import TokenDataset, TokenPart
from pipelines.tokens.shard_encoder import encode_pass, one_core_a_thread
from pipelines.tokens.shards import plan_shards, skipped_rows
from tokenizer import Autoencoder
from tokenizer.code_grids import marked_positions


@dataclass(frozen=True)
class VerificationResult:
    """`tokens` compared in `rows` rows, `mismatches` of them different.

    `gaps` has one number a mismatched position (of the finest grid, where there are several): how much farther the
    stored codes lie from the encoder's features than the codes found now, as a share of the latter's squared distance.
    Near-ties that flipped under another library or device have gaps of about 1e-6; gaps near 1 mean other images or
    another tokenizer.
    """

    split: str
    rows: int
    tokens: int
    mismatches: int
    gaps: tuple[float, ...]

    @property
    def match_rate(self) -> float:
        return 1 - self.mismatches / max(self.tokens, 1)

    def __str__(self) -> str:
        text = f"{self.match_rate:.4%} of {self.tokens:,} tokens in {self.rows} random rows of {self.split} match"
        if not self.gaps:
            return text
        return f"{text}; distance gap of the others: median {np.median(self.gaps):.1e}, largest {max(self.gaps):.1e}"


def verify(
    dataset: TokenDataset, tokenizer: LoadedTokenizer, rows: int, split: str | None = None, seed: int = 0
) -> VerificationResult:
    """Check every file's sha256, then encode `rows` random rows of `split` (default: the first) again.

    The images come from where the spec says, prepared as it says. `tokenizer` is the one stored with the tokens.

    Raises:
        UserError: a damaged file, or images that cannot be found again or have other keys.
    """
    dataset.verify_files()
    spec, tokens = dataset.spec, dataset.split(split or dataset.splits[0])
    images = open_source(dataset, tokens.name)
    chosen = np.sort(np.random.default_rng(seed).choice(len(tokens), min(rows, len(tokens)), replace=False))
    stored, places = tokens.part(chosen), source_rows(dataset, tokens.name, images)[chosen]
    mismatches, gaps = 0, []
    with one_core_a_thread():  # as `encode` does
        for start in range(0, len(chosen), spec.compute.batch):
            part = slice(start, start + spec.compute.batch)
            found = compare(
                tokenizer.model, _originals(images, places[part], stored, start), stored.codes(part), spec.compute.batch
            )
            mismatches += found[0]
            gaps += found[1]
    return VerificationResult(tokens.name, len(chosen), stored.tokens.size, mismatches, tuple(gaps))


def open_source(dataset: TokenDataset, split: Split) -> ImageDataset:
    """The images that a split was encoded from. UserError if they are gone or their number has changed."""
    spec = dataset.spec
    content = {**spec.source.data, "preprocess": spec.preprocess.model_dump(), "on_unreadable": "skip"}
    config = validate(DataConfig, content, f"{dataset.folder / 'token_spec.json'}: source.data")
    images = open_images(config, split)
    if len(images) != spec.source.rows[split]:
        raise UserError(
            f"{dataset.folder}: split {split!r} was encoded from {spec.source.rows[split]:,} images, "
            f"the source now has {len(images):,}"
        )
    return images


def source_rows(dataset: TokenDataset, name: Split, images: ImageDataset) -> np.ndarray:
    """The row of the source of each row of tokens: the same but for the images that were skipped."""
    entry = dataset.manifest.splits[name]
    if not entry.skipped:
        return np.arange(entry.planned)
    kept: list[int] = []
    for shard in plan_shards(name, entry.planned, dataset.spec.shards[name]):
        skipped = {key for key, _ in skipped_rows(dataset.folder / shard.file)}
        kept += [row for row in shard.rows if not skipped or images.key(row) not in skipped]
    return np.array(kept, dtype=np.int64)


def _originals(images: ImageDataset, rows: np.ndarray, stored: TokenPart, first: int) -> Tensor:
    """The images (b, c, h, w) of some rows of the source. UserError if one has another key than `stored` says."""
    found: list[Tensor] = []
    for place, row in enumerate(rows.tolist(), first):
        example, key = images.read(row), stored.keys[place]
        if not isinstance(example, Example):
            raise UserError(f"data: {example}; it was readable when its tokens were written")
        if example.key != key:
            raise UserError(
                f"data: row {row} is now {example.key!r}, its tokens were written for {key!r}: the source changed"
            )
        found.append(example.image)
    return torch.stack(found)


@torch.inference_mode()
def compare(model: Autoencoder, images: Tensor, stored: Tensor, size: int) -> tuple[int, list[float]]:
    """Mismatched tokens, and the relative distance gap of each mismatched position.

    `images` (b, c, h, w) are encoded in one pass of `size` images; `stored` (b, *code_axes) int64.
    """
    device = next(model.parameters()).device
    padded = torch.zeros(size, *images.shape[1:], dtype=torch.uint8)
    padded[: len(images)] = images
    found = encode_pass(model, padded)[: len(images)].view(stored.shape).long()
    stored = stored.to(device)
    wrong = found != stored
    if not wrong.any():
        return 0, []
    features = model.features(images.to(device))
    before, now = (model.quantizer.distances(features, codes) for codes in (stored, found))
    gap = (before - now) / now.clamp(min=1e-12)
    return int(wrong.sum()), gap[marked_positions(wrong, model.code_grids)].abs().tolist()
