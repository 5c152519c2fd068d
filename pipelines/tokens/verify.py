"""`smalti inspect --verify N`: encode N random rows of the original images again and compare."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.recipe_files import validate
from pipelines.data import DataConfig, Example, ImageDataset, Split, open_images
from pipelines.models.checkpoint import load_tokenizer
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.shards import plan, skipped_rows
from tokenizer import Autoencoder


@dataclass(frozen=True)
class Verified:
    """`tokens` compared in `rows` rows, `mismatches` of them different.

    `gaps` has one number a mismatched position: how much farther the stored code lies from the encoder's features than
    the code found now, as a share of the latter's squared distance. Near-ties that flipped under another library or
    device have gaps of about 1e-6; gaps near 1 mean other images or another tokenizer.
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


def verify(dataset: TokenDataset, rows: int, split: str | None = None, seed: int = 0) -> Verified:
    """Check every file's sha256, then encode `rows` random rows of `split` (default: the first) again.

    The images come from where the spec says, prepared as it says; the tokenizer is the one stored with the tokens.

    Raises:
        UserError: a damaged file, images that cannot be found again or have other keys, or a foreign tokenizer inside.
    """
    dataset.verify_files()
    spec, tokens = dataset.spec, dataset.split(split or dataset.splits[0])
    name = tokens.name
    tokenizer = load_tokenizer(dataset.tokenizer_folder)
    spec.check_tokenizer(tokenizer.fingerprint, str(tokenizer.folder), str(dataset.folder))
    content = {**spec.source.data, "preprocess": spec.preprocess.model_dump(), "on_unreadable": "skip"}
    config = validate(DataConfig, content, f"{dataset.folder / 'token_spec.json'}: source.data")
    images = open_images(config, name)
    if len(images) != spec.source.rows[name]:
        raise UserError(
            f"{dataset.folder}: split {name!r} was encoded from {spec.source.rows[name]:,} images, "
            f"the source now has {len(images):,}"
        )
    chosen = np.sort(np.random.default_rng(seed).choice(len(tokens), min(rows, len(tokens)), replace=False))
    source = source_rows(dataset, name, images)[chosen]
    size, mismatches, gaps = spec.compute.batch, 0, []
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        batch = torch.stack(
            [_same_image(images, int(s), tokens.keys[r]) for s, r in zip(source[start:], part, strict=False)]
        )
        stored = tokens.batch(part)["codes"]
        found, gap = _compare(tokenizer.model, batch, stored, size)
        mismatches += found
        gaps += gap
    return Verified(name, len(chosen), len(chosen) * spec.tokens_per_image, mismatches, tuple(gaps))


def source_rows(dataset: TokenDataset, name: Split, images: ImageDataset) -> np.ndarray:
    """The row of the source of each row of tokens: the same but for the images that were skipped."""
    entry = dataset.manifest.splits[name]
    if not entry.skipped:
        return np.arange(entry.planned)
    kept: list[int] = []
    for shard in plan(name, entry.planned, dataset.spec.shards[name]):
        skipped = {key for key, _ in skipped_rows(dataset.folder / shard.file)}
        kept += [row for row in shard.rows if not skipped or images.key(row) not in skipped]
    return np.array(kept, dtype=np.int64)


def _same_image(images: ImageDataset, row: int, key: str) -> Tensor:
    example = images.read(row)
    if not isinstance(example, Example):
        raise UserError(f"data: {example}; it was readable when its tokens were written")
    if example.key != key:
        raise UserError(
            f"data: row {row} is now {example.key!r}, its tokens were written for {key!r}: the source changed"
        )
    return example.image


@torch.inference_mode()
def _compare(model: Autoencoder, images: Tensor, stored: Tensor, size: int) -> tuple[int, list[float]]:
    """Mismatched tokens, and the relative distance gap of each mismatched position."""
    passed = torch.zeros(size, *images.shape[1:], dtype=torch.uint8)
    passed[: len(images)] = images
    found = model.encode(passed).codes
    assert found is not None
    found = found[: len(images)]
    wrong = found != stored
    if not wrong.any():
        return 0, []
    features = model.encoder(model.likelihood.inmap(images.float() / 255))
    features, quantizer = model.quantizer.project(features), model.quantizer
    before, now = ((features - quantizer.codes_to_latents(codes)).square().sum(1) for codes in (stored, found))
    gap = (before - now) / now.clamp(min=1e-12)
    return int(wrong.sum()), gap[wrong.any(-1)].abs().tolist()
