"""What each latent unit does to an image: `smalti traverse`, one unit at a time, the others held."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipelines.base import distributed
from pipelines.base.atomic_files import write_json
from pipelines.base.errors import UserError
from pipelines.base.image_grids import image_grid, save_animation, save_grid, to_uint8
from pipelines.base.output_folder import OutputFolder, OutputKind
from pipelines.base.progress import say
from pipelines.data import DataConfig, ImageDataset, Split
from pipelines.evaluate.chosen_images import ChosenImages, check_labels, choose_images
from pipelines.evaluate.finished_figures import is_finished
from pipelines.evaluate.held_out import identity_of, open_held_out
from pipelines.evaluate.latent_window import latent_window
from pipelines.models.checkpoint import LoadedTokenizer, load_tokenizer
from pipelines.models.image_pipeline_folder import find_tokenizer
from pipelines.tokens.encoding_spec import compute_batch, source_digest
from tokenizer import Autoencoder
from tokenizer.latent_health import LatentHealth

SHOWN = 12  # units, where none are named
ROWS_AT_ONCE = 64  # images that are decoded in one pass
TRAVERSAL = OutputKind("a traversal", "smalti traverse", owned=("traversal.json", "traversal.png", "traversal.gif"))


class TraversalRequest(BaseModel):
    """`row`: the image of `split` whose posterior's mean is the starting point (None: the mean of all latents).

    span: how far each way, in standard deviations of the unit over images (for a latent prior that fits, 1).
    latents: units of the flattened latent (None: those of largest KL). max_images: from which those are measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    row: int | None = Field(default=None, ge=0)
    split: Split = "test"
    span: float = Field(default=3.0, gt=0, le=1000)
    steps: int = Field(default=9, ge=2, le=256)
    latents: tuple[int, ...] | None = Field(default=None, min_length=1, max_length=256)
    max_images: int = Field(default=1000, ge=2)


@dataclass(frozen=True)
class Traversal:
    """tiles: uint8 (units, steps, c, h, w). units: numbers in the flattened latent. values: (units, steps)."""

    tiles: Tensor
    units: list[int]
    values: Tensor
    labels: list[str]


def traverse(
    folder: str | Path, data: DataConfig, output: str | Path, request: TraversalRequest, overwrite: bool = False
) -> Path:
    """Write `traversal.png`, a row for each unit, the one of largest KL first, and `traversal.gif`. Returns the folder.

    Along a row one unit moves through the range that images give it, `span` standard deviations of the aggregate
    posterior to each side of its mean; the others stay at the starting point.

    Raises:
        UserError: no continuous tokenizer there, no such row or unit, or an `output` that holds something else.
    """
    output, accelerator = Path(output), distributed.start()
    target = OutputFolder(output, TRAVERSAL)
    target.check(overwrite)
    tokenizer = load_tokenizer(find_tokenizer(folder), accelerator.device)
    _check_request(tokenizer, request)
    images = open_held_out(tokenizer, data, request.split, accelerator)
    identity = identity_of(tokenizer, source_digest(data, images), request, leave_out=())
    if not overwrite and is_finished(output, "traversal.json", identity, TRAVERSAL.owned[1:]):
        if accelerator.is_main_process:
            say(f"{output}: already traversed; nothing to do")
        return output
    start = None
    if request.row is not None:
        start = choose_images([str(request.row)], tokenizer.preprocess, lambda: images)
        check_labels(tokenizer.model, start, [str(request.row)])
    health = _health(tokenizer, images, request, accelerator)
    found = traversal(tokenizer.model, health, start, request)
    with target.begin(True, accelerator):
        if accelerator.is_main_process:
            _draw(output, found, request)
            write_json(output / "traversal.json", {"request": identity, **_content(found)})
            say(f"{output / 'traversal.png'}: {len(found.units)} of {len(health.active)} units")
    return output


@torch.no_grad()
def traversal(
    model: Autoencoder, health: LatentHealth, start: ChosenImages | None, request: TraversalRequest
) -> Traversal:
    """Decode the starting point with one unit changed at a time."""
    device = next(model.parameters()).device
    units = _units(health, request)
    labels = start.label.to(device) if start is not None and model.takes_labels else None
    shape = model.probe().z.shape[2:]
    if start is None:
        z = health.aggregate_mean.float().to(device)[None]
    else:
        z = model.encode(start.image.to(device), condition=labels).z
    mean, deviation = health.aggregate_mean.float(), health.aggregate_variance.float().sqrt()
    moves = torch.linspace(-request.span, request.span, request.steps)
    values = mean[units, None] + deviation[units, None] * moves
    tiles = []
    for unit, row in zip(units, values, strict=True):
        points = z.flatten(1).repeat(request.steps, 1)
        points[:, unit] = row.to(device)
        decoded = [
            model.decode(part.view(-1, *shape), None if labels is None else labels.expand(len(part)))
            for part in points.split(ROWS_AT_ONCE)
        ]
        tiles.append(to_uint8(torch.cat(decoded)).cpu())
    return Traversal(torch.stack(tiles), units, values, [_label(health, unit) for unit in units])


def _units(health: LatentHealth, request: TraversalRequest) -> list[int]:
    """The units to show, the one of largest KL first (of largest spread, where no unit has a KL of its own)."""
    size = health.spread if health.kl is None else health.kl
    if request.latents is None:
        return size.argsort(descending=True)[:SHOWN].tolist()
    return sorted(set(request.latents), key=lambda unit: -size[unit].item())


def _label(health: LatentHealth, unit: int) -> str:
    return f"z{unit}" if health.kl is None else f"z{unit}  KL {health.kl[unit]:.2f}"


def _check_request(tokenizer: LoadedTokenizer, request: TraversalRequest) -> None:
    """What can be refused before any image is encoded."""
    model = tokenizer.model
    if model.num_codes is not None:
        raise UserError(
            f"{tokenizer.folder}: the latent of a {model.config.bottleneck.kind} bottleneck has codes, so its units "
            "have no range to move in; expected a continuous one (see `smalti interpolate`, which takes any tokenizer)"
        )
    if model.needs_labels and request.row is None:
        raise UserError(
            f"--row: missing; {tokenizer.folder} decodes by label, so a traversal begins at an image; expected the "
            "number of a row"
        )
    count = model.probe().z[0, 0].numel()
    for unit in request.latents or ():
        if not 0 <= unit < count:
            raise UserError(f"--latents: found {unit}, expected 0 to {count - 1}: the latent has {count} units")


def _health(
    tokenizer: LoadedTokenizer, images: ImageDataset, request: TraversalRequest, accelerator: Accelerator
) -> LatentHealth:
    size = compute_batch(tokenizer.preprocess.size, accelerator.device)
    rows = range(min(len(images), request.max_images))
    health = latent_window(tokenizer.model, images, rows, size, accelerator, keep_means=False).health
    assert isinstance(health, LatentHealth)  # checked before
    return health


def _draw(output: Path, found: Traversal, request: TraversalRequest) -> None:
    columns = [f"{move:+.1f}" for move in torch.linspace(-request.span, request.span, request.steps).tolist()]
    tiles = list(found.tiles.flatten(0, 1))
    save_grid(output / "traversal.png", tiles, request.steps, row_labels=found.labels, column_labels=columns)
    order = [*range(request.steps), *range(request.steps - 2, 0, -1)]
    wide = min(len(found.units), 4)
    frames = [image_grid(list(found.tiles[:, step]), wide, captions=found.labels) for step in order]
    save_animation(output / "traversal.gif", frames)


def _content(found: Traversal) -> dict[str, Any]:
    return {"units": found.units, "values": found.values.tolist()}
