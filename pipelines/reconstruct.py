"""What a tokenizer keeps of an image: `smalti reconstruct`. Works for every bottleneck, discrete or continuous."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from pipelines.base import distributed
from pipelines.base.atomic_files import write_json
from pipelines.base.documents import read_json_if_valid
from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_grid, to_uint8
from pipelines.base.output_folder import OutputFolder, OutputKind
from pipelines.base.process_store import wait_for_all
from pipelines.base.progress import progress, say
from pipelines.data import DataConfig, ImageBatch, ImageDataset, Split, ordered_batches
from pipelines.evaluate.fidelity import WINDOW, ssim
from pipelines.evaluate.held_out import identity_of, open_held_out
from pipelines.models.checkpoint import LoadedTokenizer, load_tokenizer
from pipelines.models.image_pipeline_folder import find_tokenizer
from pipelines.tokens.encoding_spec import source_digest
from pipelines.training.tokenizer_task import labels_for, posterior_stream
from tokenizer import Autoencoder, ObjectiveConfig, evaluate, psnr

COLUMNS = 8
RECONSTRUCTIONS = OutputKind(
    "reconstructions", "smalti reconstruct", owned=("reconstruction.json", "reconstructions.png")
)


class ReconstructionRequest(BaseModel):
    """Figures over the first `max_images` images of a split (None: all); `num_pairs` of them are shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    split: Split = "test"
    max_images: int | None = Field(default=None, ge=1)
    num_pairs: int = Field(default=16, ge=1, le=1024)
    batch_size: int = Field(default=64, ge=1)


@dataclass(frozen=True)
class Fidelity:
    """Means over `images` images of a split: `psnr` in dB (the mean of each image's), `ssim` (None below 11 pixels).

    `negative_elbo` is an upper bound of -ln p(image) in nats, from a draw of the posterior; None for a discrete
    tokenizer, whose prior is a model of its own.
    """

    images: int
    psnr: float
    ssim: float | None
    negative_elbo: float | None


@dataclass
class Measured:
    """Of each image, in order: PSNR, SSIM and negative ELBO (NaN where there is none); of the first ones, original and
    reconstruction.
    """

    figures: list[list[float]]
    pairs: list[tuple[Tensor, Tensor]]


def reconstruct(
    folder: str | Path,
    data: DataConfig,
    output: str | Path,
    request: ReconstructionRequest | None = None,
    overwrite: bool = False,
    replace_others: bool = False,
) -> Fidelity:
    """Write `reconstructions.png`, images each above its reconstruction, and `reconstruction.json`, the figures.

    `folder` is a tokenizer's run or model folder, or an image pipeline. Images are prepared as the tokenizer was
    trained. `replace_others`: the figures of another request make room, where they would be refused otherwise.

    Raises:
        UserError: no tokenizer there, an empty split, or an `output` that holds the figures of something else.
    """
    request, output, accelerator = request or ReconstructionRequest(), Path(output), distributed.start()
    target = OutputFolder(output, RECONSTRUCTIONS)
    target.check(overwrite)
    tokenizer = load_tokenizer(find_tokenizer(folder), accelerator.device)
    images = open_held_out(tokenizer, data, request.split, accelerator)
    known = identity_of(tokenizer, source_digest(data, images), request)
    identity = {"fingerprint": tokenizer.fingerprint, **known}
    written = read_json_if_valid(output / "reconstruction.json") or {"request": identity}
    same = written.get("request") == identity
    if not (same or overwrite or replace_others):
        raise UserError(
            f"{output}: holds figures of another tokenizer or split; choose another --output or --overwrite"
        )
    if same and not overwrite and (found := _finished(output, written)) is not None:
        if accelerator.is_main_process:
            say(f"{output}: already reconstructed, {_in_words(found)}; nothing to do")
        return found
    wait_for_all(accelerator)  # nobody looks at the folder any more
    with target.begin(True, accelerator):
        measured = measure(tokenizer, images, request, accelerator)
        found = _means(measured.figures, request.split)
        if accelerator.is_main_process:
            draw_pairs(output / "reconstructions.png", measured.pairs)
            write_json(output / "reconstruction.json", {"request": identity, "fidelity": asdict(found)})
            say(f"{output}: {_in_words(found)} over {found.images:,} images of {request.split}")
        wait_for_all(accelerator)
    return found


def measure(
    tokenizer: LoadedTokenizer, images: ImageDataset, request: ReconstructionRequest, accelerator: Accelerator
) -> Measured:
    """The figures of all processes together, in the order of the rows, however many processes there are."""
    rows = range(len(images) if request.max_images is None else min(request.max_images, len(images)))
    mine, figures, pairs = distributed.share_of(rows, accelerator), [], []
    with progress(len(mine), "reconstruct", "image", visible=accelerator.is_main_process) as meter:
        for batch in ordered_batches(images, mine, request.batch_size):
            originals = batch.image
            with torch.no_grad():
                labels = labels_for(tokenizer.model, batch)
                rebuilt = tokenizer.model.reconstruct(originals.to(accelerator.device), labels).clamp(0, 1).cpu()
            shown = slice(request.num_pairs - len(pairs))
            pairs += list(zip(originals[shown], to_uint8(rebuilt[shown]), strict=True))
            bound = _negative_elbo(tokenizer.model, batch, accelerator.device)
            figures += torch.stack([*_likeness(rebuilt, originals / 255), bound], dim=1).tolist()
            meter.advance(len(batch))
    pairs = distributed.gather(pairs, accelerator)[: request.num_pairs]
    return Measured(distributed.gather(figures, accelerator), pairs)


def draw_pairs(path: Path, pairs: Sequence[tuple[Tensor, Tensor]]) -> Path:
    """Rows of originals, each above the row of its reconstructions; white tiles fill the last two rows."""
    columns = min(COLUMNS, len(pairs))
    white = torch.full_like(pairs[0][0], 255)
    padded = [*pairs, *[(white, white)] * (-len(pairs) % columns)]
    rows = [padded[start : start + columns] for start in range(0, len(padded), columns)]
    tiles = [image for row in rows for side in zip(*row, strict=True) for image in side]
    return save_grid(path, tiles, columns, row_labels=["image", "rebuilt"] * len(rows))


def _finished(output: Path, written: Any) -> Fidelity | None:
    """The figures of a complete folder; None where something in it is missing or damaged."""
    try:
        found = TypeAdapter(Fidelity).validate_python(written["fidelity"])
    except (KeyError, TypeError, ValidationError):
        return None
    return found if (output / "reconstructions.png").is_file() else None


def _likeness(rebuilt: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR and SSIM of each image."""
    noise = psnr(rebuilt, originals)
    large = min(originals.shape[2:]) >= WINDOW
    return noise, ssim(rebuilt, originals) if large else torch.full_like(noise, math.nan)


def _negative_elbo(model: Autoencoder, batch: ImageBatch, device: torch.device) -> Tensor:
    """In nats, NaN for a latent that is not random. The draw of each image follows from its key alone."""
    if not model.is_random:
        return torch.full((len(batch),), math.nan)
    streams = [posterior_stream(0, row.key) for row in batch.metadata]
    bound = ObjectiveConfig.model_validate({"weights": {"nll": 1, "kl": 1}})
    found = evaluate(model, batch.image.to(device), bound, 0, streams, labels_for(model, batch))
    return found.figures["negative_elbo"].float().cpu()


def _means(figures: list[list[float]], split: str) -> Fidelity:
    if not figures:
        raise UserError(f"data: no image of split {split!r} can be read")
    noise, *others = (math.fsum(column) / len(figures) for column in zip(*figures, strict=True))
    likeness, bound = (None if math.isnan(mean) else mean for mean in others)
    return Fidelity(len(figures), noise, likeness, bound)


def _in_words(found: Fidelity) -> str:
    likeness = "" if found.ssim is None else f", SSIM {found.ssim:.4f}"
    bound = "" if found.negative_elbo is None else f", negative ELBO {found.negative_elbo:.2f} nats an image"
    return f"PSNR {found.psnr:.2f} dB{likeness}{bound}"
