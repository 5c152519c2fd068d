"""Tokens, then pictures: `smalti sample`. One PNG per image that knows its own seed; killed runs continue."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from pipelines.base import distributed
from pipelines.base.atomic_files import sha256_of, write_json
from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_grid, save_png
from pipelines.base.progress import console, progress
from pipelines.models.hub import local_folder
from pipelines.models.image_pipeline import ImageGenerationPipeline, Label, SamplingArguments
from pipelines.models.image_pipeline_folder import find_image_pipeline
from pipelines.models.image_seeds import image_seeds

GRID_COLUMNS, GRID_ROWS = 10, 8  # the most that the overview shows


@dataclass(frozen=True)
class Samples:
    """What `sample` wrote into `folder`: uint8 `images`, class numbers `labels` (-1: none), names of the `classes`,
    and each image's log-likelihood in nats under the prior."""

    folder: Path
    images: UInt8[Tensor, "n c h w"]
    labels: list[int]
    classes: list[str] | None
    logprobs: list[float]


def sample(
    folder: str | Path,
    output: str | Path,
    labels: Sequence[Label] | None = None,
    n: int = 64,
    seed: int = 0,
    batch_size: int = 64,
    overwrite: bool = False,
    **options: Unpack[SamplingArguments],
) -> Samples:
    """Write n images into `output/images/`, the overview `samples.png`, and last `samples.json`.

    Image i has label `labels[i % len(labels)]` (None: every class in turn, if the prior has classes) and its own random
    stream, so it depends on neither n, batch size nor the number of processes: rerunning continues, a larger n adds.
    `folder` is what `ImageGenerationPipeline.from_pretrained` takes.

    Raises:
        UserError: as `ImageGenerationPipeline`; or `output` holds something else and `overwrite` is off.
    """
    accelerator, output = distributed.start(), Path(output)
    folder = find_image_pipeline(local_folder(folder))
    pipeline = ImageGenerationPipeline.from_pretrained(folder, accelerator.device)
    if n < 1:
        raise UserError(f"n: found {n}, expected at least 1")
    if labels is None and pipeline.num_classes is not None:
        labels = range(pipeline.num_classes)
    numbers = pipeline.label_numbers(list(labels)) if labels is not None else [None]
    request = {
        "generator": {part: sha256_of(folder / part / "model.safetensors") for part in ("tokenizer", "prior")},
        "options": pipeline.options(numbers[0] is not None, **options).model_dump(mode="json"),
        "labels": numbers,
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    names = [_file_name(index, numbers[index % len(numbers)], pipeline.classes) for index in range(n)]
    if _finished(output, request, names, overwrite):
        if accelerator.is_main_process:
            console.print(f"{output}: already sampled, {n:,} images; nothing to do")
        return read_samples(output)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _claim(output, request, overwrite)
    accelerator.wait_for_everyone()

    seeds = image_seeds(seed, n)
    mine = range(accelerator.process_index, n, accelerator.num_processes)
    pending = [i for i in mine if _facts(output / names[i]).get("request") != digest]
    length = pipeline.prior.model.vocabulary.codes.length
    with progress(len(pending) * length, "sample", "token", visible=accelerator.is_main_process) as meter:
        for start in range(0, len(pending), batch_size):
            part = pending[start : start + batch_size]
            drawn = pipeline(
                [label for i in part if (label := numbers[i % len(numbers)]) is not None] or None,
                num_images_per_prompt=1 if numbers[0] is not None else len(part),
                generator=[seeds[i] for i in part],
                output_type="pt",
                batch_size=len(part),
                callback_on_step_end=lambda _, step, steps, found: meter.advance(len(found["codes"])),
                **options,
            )
            for i, image, logprob in zip(part, drawn.images, drawn.logprobs.double().sum(1).tolist(), strict=True):
                facts = {"index": i, "label": numbers[i % len(numbers)], "seed": seeds[i], "logprob": round(logprob, 3)}
                save_png(output / names[i], torch.as_tensor(image), {"smalti": json.dumps(facts | {"request": digest})})
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _complete(output, request, names, pipeline)
    accelerator.wait_for_everyone()
    return read_samples(output)


def read_samples(folder: str | Path) -> Samples:
    """The finished samples of a folder, in order.

    Raises:
        UserError: the folder holds no finished samples.
    """
    folder = Path(folder)
    path = folder / "samples.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected what `smalti sample` wrote") from error
    images = []
    for entry in found["images"]:
        with Image.open(folder / entry["file"]) as image:
            pixels = torch.from_numpy(np.array(image))
        images.append(pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))
    labels = [-1 if entry["label"] is None else entry["label"] for entry in found["images"]]
    return Samples(folder, torch.stack(images), labels, found["classes"], [e["logprob"] for e in found["images"]])


def _complete(output: Path, request: dict[str, Any], names: list[str], pipeline: ImageGenerationPipeline) -> None:
    """Gather what every process wrote: the overview, then samples.json."""
    entries = []
    for name in names:
        facts = _facts(output / name)
        title = pipeline.classes[facts["label"]] if pipeline.classes and facts["label"] is not None else None
        kept = {key: facts[key] for key in ("index", "label", "seed", "logprob")}
        entries.append({"file": name, **kept, "label_name": title})
    cycle = len(request["labels"])
    titles = [entry["label_name"] or "" for entry in entries]
    aligned = 2 <= cycle <= GRID_COLUMNS  # one column per label
    whole = max(d for d in range(1, GRID_COLUMNS + 1) if cycle % d == 0)  # whole rows make up a turn of the labels
    columns = cycle if aligned else whole if whole > 3 else min(GRID_COLUMNS, max(1, round(len(names) ** 0.5)))
    shown = min(len(names), columns * GRID_ROWS)
    tiles = []
    for name in names[:shown]:
        with Image.open(output / name) as image:
            tiles.append(image.copy())
    save_grid(
        output / "samples.png",
        tiles,
        columns,
        captions=titles[:shown] if any(titles) and not aligned else None,
        column_labels=titles[:columns] if any(titles) and aligned else None,
    )
    classes = list(pipeline.classes) if pipeline.classes else None
    write_json(output / "samples.json", {"request": request, "classes": classes, "images": entries})


def _file_name(index: int, label: int | None, classes: Sequence[str] | None) -> str:
    title = "" if label is None else classes[label] if classes else str(label)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower()
    return f"images/{index:05d}{'_' + slug if slug else ''}.png"


def _facts(path: Path) -> dict[str, Any]:
    """What an image of ours says of itself; empty for anything else, torn or absent."""
    try:
        with Image.open(path) as image:
            return json.loads(image.info["smalti"])
    except (OSError, KeyError, ValueError, SyntaxError):
        return {}


def _finished(output: Path, request: dict[str, Any], names: list[str], overwrite: bool) -> bool:
    """Whether `output` holds just these images; UserError when it holds anything else."""
    if overwrite or not output.exists() or not any(output.iterdir()):
        return False
    note = output / "request.json"
    if not note.is_file():
        raise UserError(f"{output}: is not empty and was not written by `smalti sample`; choose another --output")
    written = json.loads(note.read_text())
    if written != request:
        differing = "; ".join(
            f"{key}: there {_short(written.get(key))}, asked {_short(request[key])}"
            for key in request
            if written.get(key) != request[key]
        )
        raise UserError(f"{output}: holds other samples ({differing}); choose another --output, or --overwrite")
    done = output / "samples.json"
    return done.is_file() and [entry["file"] for entry in json.loads(done.read_text())["images"]] == names


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}…"


def _claim(output: Path, request: dict[str, Any], overwrite: bool) -> None:
    if overwrite and (output / "request.json").is_file():
        shutil.rmtree(output)
    (output / "samples.json").unlink(missing_ok=True)
    write_json(output / "request.json", request)
