"""What a tokenizer keeps of an image: `smalti reconstruct`. Works for every bottleneck, discrete or continuous."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate.utils import gather_object

from pipelines.base import distributed
from pipelines.base.atomic_files import sha256_of, write_json
from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_grid
from pipelines.base.progress import console, progress
from pipelines.data import DataConfig, Split, open_images, ordered_batches
from pipelines.evaluate.fidelity import WINDOW, ssim
from pipelines.models.checkpoint import load_tokenizer
from tokenizer import psnr

COLUMNS = 8


@dataclass(frozen=True)
class Fidelity:
    """Means over `images` images of a split: `psnr` in dB (the mean of each image's), `ssim` (None below 11 pixels)."""

    images: int
    psnr: float
    ssim: float | None


def reconstruct(
    folder: str | Path,
    data: DataConfig,
    output: str | Path,
    n: int = 16,
    split: Split = "test",
    limit: int | None = None,
    batch_size: int = 64,
    overwrite: bool = False,
) -> Fidelity:
    """Write `reconstructions.png`, n images each above its reconstruction, and `reconstruction.json`, the figures over
    the first `limit` images of the split (None: all).

    `folder` is a tokenizer's run or model folder, or an image pipeline. Images are prepared as the
    tokenizer was trained.

    Raises:
        UserError: no tokenizer there, an empty split, or an `output` that holds the figures of something else.
    """
    accelerator, output, folder = distributed.start(), Path(output), Path(folder)
    tokenizer = load_tokenizer(
        folder / "tokenizer" if (folder / "model_index.json").is_file() else folder, accelerator.device
    )
    images = open_images(data.model_copy(update={"preprocess": tokenizer.preprocess}), split)
    rows = range(len(images) if limit is None else min(limit, len(images)))
    if not rows:
        raise UserError(f"data: split {split!r} has no images to reconstruct")
    job = {
        "weights": sha256_of(tokenizer.folder / "model.safetensors"),
        "source": data.source.model_dump(mode="json"),
        "split": split,
        "rows": len(rows),
        "shown": n,
    }
    if (done := _finished(output, job, overwrite)) is not None:
        if accelerator.is_main_process:
            console.print(f"{output}: already reconstructed, PSNR {done.psnr:.2f} dB; nothing to do")
        return done

    model, figures, pairs = tokenizer.model, [], []
    share = -(-len(rows) // accelerator.num_processes)
    mine = rows[accelerator.process_index * share : (accelerator.process_index + 1) * share]
    with progress(len(mine), "reconstruct", "image", visible=accelerator.is_main_process) as meter:
        for batch in ordered_batches(images, mine, batch_size):
            original = batch.image
            with torch.inference_mode():
                rebuilt = model.reconstruct(original.to(accelerator.device)).clamp(0, 1).cpu()
            pairs += list(zip(original, rebuilt, strict=True))[: max(0, n - len(pairs))]
            noise = psnr(rebuilt, original)
            likeness = (
                ssim(rebuilt, original / 255) if min(original.shape[2:]) >= WINDOW else noise.new_full((), math.nan)
            )
            figures += torch.stack([noise, likeness.expand_as(noise)], dim=1).tolist()
            meter.advance(len(batch))
    figures = gather_object(figures)  # in the order of the rows, however many processes there are
    if not figures:
        raise UserError(f"data: no image of split {split!r} can be read")
    means = [math.fsum(column) / len(figures) for column in zip(*figures, strict=True)]
    found = Fidelity(len(figures), means[0], None if math.isnan(means[1]) else means[1])
    if accelerator.is_main_process:
        draw_pairs(output / "reconstructions.png", pairs)
        write_json(output / "reconstruction.json", {"job": job, **asdict(found)})
        likeness = "" if found.ssim is None else f", SSIM {found.ssim:.4f}"
        console.print(f"{output}: PSNR {found.psnr:.2f} dB{likeness} over {found.images:,} images of {split}")
    accelerator.wait_for_everyone()
    return found


def draw_pairs(path: Path, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Path:
    """Rows of originals, each above the row of its reconstructions."""
    columns = min(COLUMNS, len(pairs))
    pairs = pairs[: len(pairs) // columns * columns]
    rows = [pairs[start : start + columns] for start in range(0, len(pairs), columns)]
    tiles = [image for row in rows for side in zip(*row, strict=True) for image in side]
    return save_grid(path, tiles, columns, row_labels=["image", "rebuilt"] * len(rows))


def _finished(output: Path, job: dict, overwrite: bool) -> Fidelity | None:
    note = output / "reconstruction.json"
    if overwrite or not note.is_file():
        return None
    found = json.loads(note.read_text())
    if found.pop("job", None) != job:
        raise UserError(
            f"{note}: holds the figures of another tokenizer or split; choose another --output, or --overwrite"
        )
    return Fidelity(**found)
