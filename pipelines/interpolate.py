"""From one image to another through the latents between them: `smalti interpolate`."""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipelines.base import distributed
from pipelines.base.atomic_files import write_json
from pipelines.base.image_grids import image_grid, save_animation, save_grid, to_uint8
from pipelines.base.output_folder import OutputFolder, OutputKind
from pipelines.base.progress import say
from pipelines.data import DataConfig, Split
from pipelines.evaluate.chosen_images import ChosenImages, check_labels, choose_images
from pipelines.evaluate.finished_figures import is_finished
from pipelines.evaluate.held_out import identity_of, open_held_out
from pipelines.evaluate.latent_paths import linear_path, spherical_path
from pipelines.models.checkpoint import load_tokenizer
from pipelines.models.image_pipeline_folder import find_tokenizer
from tokenizer import Autoencoder

INTERPOLATION = OutputKind(
    "an interpolation",
    "smalti interpolate",
    owned=("interpolation.json", "interpolation.png", "interpolation.gif"),
)


class InterpolationRequest(BaseModel):
    """`pairs` of images, each a row of `split` or the path of a file. `steps` latents from one to the other, both
    included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    pairs: tuple[tuple[str, str], ...] = Field(min_length=1, max_length=256)
    split: Split = "test"
    steps: int = Field(default=8, ge=2, le=256)
    spherical: bool = False
    animation: bool = False


def interpolate(
    folder: str | Path,
    data: DataConfig | None,
    output: str | Path,
    request: InterpolationRequest,
    overwrite: bool = False,
) -> Path:
    """Write `interpolation.png`, a row for each pair: the images at both ends, and between them what is decoded from
    the latents on the way. With `animation` also `interpolation.gif`. Returns the folder.

    A continuous tokenizer's latents are the posterior's means. With codes, the features before the quantizer are
    interpolated and each point is quantised: a latent between two codes has none. A model with a condition decodes each
    half under the label of the image at its end. `data` is None where no pair names a row.

    Raises:
        UserError: no tokenizer or image there, or an `output` that holds something else.
    """
    output, accelerator = Path(output), distributed.start()
    target = OutputFolder(output, INTERPOLATION)
    target.check(overwrite)
    tokenizer = load_tokenizer(find_tokenizer(folder), accelerator.device)
    names = [name for pair in request.pairs for name in pair]

    def rows():
        assert data is not None  # a row was named
        return open_held_out(tokenizer, data, request.split, accelerator)

    chosen = choose_images(names, tokenizer.preprocess, rows)
    check_labels(tokenizer.model, chosen, names)
    identity = identity_of(tokenizer, chosen.digest(), request, leave_out=("animation",))
    figures = ["interpolation.png", *(["interpolation.gif"] if request.animation else [])]
    if not overwrite and is_finished(output, "interpolation.json", identity, figures):
        if accelerator.is_main_process:
            say(f"{output}: already interpolated; nothing to do")
        return output
    with target.begin(True, accelerator):
        if accelerator.is_main_process:
            tiles = interpolated(tokenizer.model, chosen, request)
            _draw(output, chosen, tiles, request)
            write_json(output / "interpolation.json", {"request": identity})
            say(f"{output / 'interpolation.png'}: {len(request.pairs)} pairs, {request.steps} steps")
    return output


@torch.no_grad()
def interpolated(model: Autoencoder, chosen: ChosenImages, request: InterpolationRequest) -> Tensor:
    """uint8 (pairs, steps, c, h, w): what is decoded on the way from each even image to the one after it."""
    device = next(model.parameters()).device
    labels = chosen.label.to(device) if model.takes_labels else None
    path = spherical_path if request.spherical else linear_path
    points = latents_or_features(model, chosen.image.to(device), labels)
    rows = []
    for place in range(0, len(points), 2):
        between = path(points[place], points[place + 1], request.steps)
        ends = None
        if labels is not None:
            nearer = torch.arange(request.steps, device=device) * 2 >= request.steps
            ends = torch.where(nearer, labels[place + 1], labels[place])
        z = between if model.num_codes is None else model.bottleneck(between).z
        rows.append(to_uint8(model.decode(z, ends)).cpu())
    return torch.stack(rows)


def latents_or_features(model: Autoencoder, images: Tensor, labels: Tensor | None) -> Tensor:
    """What can be interpolated: latents of a continuous model, features before the quantizer of a discrete one."""
    if model.num_codes is None:
        return model.encode(images, condition=labels).z
    return model.features(images, labels)


def _draw(output: Path, chosen: ChosenImages, tiles: Tensor, request: InterpolationRequest) -> None:
    shares = [f"{share:.0%}" for share in torch.linspace(0, 1, request.steps).tolist()]
    rows = zip(chosen.image[::2], tiles, chosen.image[1::2], strict=True)
    everything = [tile for start, between, end in rows for tile in (start, *between, end)]
    names = ["from", *shares, "to"]
    save_grid(output / "interpolation.png", everything, len(names), column_labels=names)
    if request.animation:
        order = [*range(request.steps), *range(request.steps - 2, 0, -1)]
        columns = min(len(tiles), 8)
        frames = [image_grid(list(tiles[:, step]), columns) for step in order]
        save_animation(output / "interpolation.gif", frames)
