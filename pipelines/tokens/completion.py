"""What makes a token dataset complete once its shards are written: hashes, figures, baselines, card; manifest last."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.base.atomic_files import sha256_of, write_json
from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_grid
from pipelines.data import ImageDataset, Split
from pipelines.models.token_spec import TokenSpec
from pipelines.tokens.baselines import LevelBaselines, write_baselines
from pipelines.tokens.card import write_card
from pipelines.tokens.dataset import TokenSplit
from pipelines.tokens.manifest import Manifest, ManifestSplit, ShardEntry, Skipped, Stats, digest_of
from pipelines.tokens.shards import plan_shards, row_count, skipped_rows
from pipelines.tokens.statistics import count_codes, mean_unigram_bits, window_of
from tokenizer import Autoencoder, overall_health, psnr

PSNR_IMAGES, PAIRS_SHOWN = 256, 10
BASELINES_SPLIT: Split = "train"


def complete(output: Path, spec: TokenSpec, model: Autoencoder, datasets: Mapping[Split, ImageDataset]) -> Manifest:
    """Measure every split, file by file, and write baselines, figure, card and manifest into `output`."""
    splits: dict[Split, ManifestSplit] = {}
    baselines = LevelBaselines(spec.code_grids)
    for split, images in datasets.items():
        entry = split_entry(output, spec, split)
        counted = baselines if split == BASELINES_SPLIT else None
        figure = output / "reconstructions.png" if split == [*datasets][-1] else None
        stats = split_statistics(TokenSplit(output, spec, split, entry), model, images, counted, figure)
        splits[split] = entry.model_copy(update={"stats": stats})
    fitted = BASELINES_SPLIT in splits and splits[BASELINES_SPLIT].rows > 0
    manifest = Manifest(
        spec_sha256=spec.sha256,
        digest=digest_of(spec.sha256, splits),
        splits=splits,
        baselines=write_baselines(output, baselines, BASELINES_SPLIT) if fitted else None,
    )
    write_card(output, spec, manifest)
    write_json(output / "manifest.json", manifest.model_dump(mode="json"))
    return manifest


def split_entry(output: Path, spec: TokenSpec, split: Split) -> ManifestSplit:
    """The files of a split, hashed, and the images that they leave out."""
    planned = spec.source.rows[split]
    files = [shard.file for shard in plan_shards(split, planned, spec.shards[split])]
    entries = tuple(
        ShardEntry(
            file=file,
            rows=row_count(output / file),
            bytes=(output / file).stat().st_size,
            sha256=sha256_of(output / file),
        )
        for file in files
    )
    skipped = tuple(Skipped(key=key, reason=reason) for file in files for key, reason in skipped_rows(output / file))
    return ManifestSplit(planned=planned, rows=sum(e.rows for e in entries), shards=entries, skipped=skipped)


def split_statistics(
    split: TokenSplit,
    model: Autoencoder,
    images: ImageDataset,
    baselines: LevelBaselines | None = None,
    figure: Path | None = None,
) -> Stats | None:
    """Statistics of a split, None if no row of it could be read. Each file is read once: `baselines` count it too.
    `figure` gets originals above reconstructions.
    """
    if len(split) == 0:
        return None
    window = window_of(split)

    def chunks() -> Iterator[np.ndarray]:
        for chunk in window.read():
            if baselines is not None:
                baselines.fit(window.codes(chunk))
            yield chunk

    levels = count_codes(window, chunks()).report()
    health = overall_health(levels)
    originals, reconstructions = reconstruct_sample(model, images, PSNR_IMAGES, split.spec.compute.batch)
    if figure is not None:
        pairs = [*originals[:PAIRS_SHOWN], *reconstructions[:PAIRS_SHOWN]]
        save_grid(figure, pairs, columns=min(PAIRS_SHOWN, len(originals)), row_labels=("image", "tokens"))
    return Stats(
        codes_used=sum(int((level.counts.sum(0) > 0).sum()) for level in levels),
        perplexity=float(health.perplexity),
        unigram_bits=mean_unigram_bits(levels),
        verdict=health.verdict,
        reason=health.reason,
        psnr_db=float(psnr(reconstructions, originals).mean()),
        psnr_images=len(originals),
    )


@torch.inference_mode()
def reconstruct_sample(model: Autoencoder, images: ImageDataset, n: int, batch: int) -> tuple[Tensor, Tensor]:
    """Up to n readable images (b, c, h, w) in [0, 1], evenly spread over the data set, and what the tokenizer keeps.

    UserError if none of them can be read.
    """
    rows = np.unique(np.linspace(0, len(images) - 1, min(n, len(images))).round().astype(int))
    found = images.read_pixels(rows, keep=False).image
    if not len(found):
        raise UserError(f"data: none of {len(rows)} images could be read; expected some to measure reconstructions on")
    device = next(model.parameters()).device
    decoded = torch.cat([model.reconstruct(part.to(device)).cpu() for part in found.split(batch)])
    return found.float() / 255, decoded
