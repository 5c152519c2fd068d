"""The files of `smalti sample`: images that know their own seed, an overview, and `samples.json`."""

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from pipelines.base.documents import parse_json, read_json_mapping
from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_grid

GRID_COLUMNS, GRID_ROWS = 10, 8  # the most that the overview shows


@dataclass(frozen=True)
class Samples:
    """What `sample` wrote into `folder`: PNG `files`, class numbers `labels` (-1: none), names of the `classes`,
    each image's log-likelihood in nats under the prior, the sha256 of the `weights` of each model involved, and the
    `prompts` of the images (None: drawn without)."""

    folder: Path
    files: list[Path]
    labels: list[int]
    classes: list[str] | None
    logprobs: list[float]
    weights: Mapping[str, str] = field(default_factory=dict)
    prompts: list[str] | None = None

    def read_images(self, rows: Sequence[int]) -> UInt8[Tensor, "n c h w"]:
        """The images of some rows.

        Raises:
            UserError: a file is missing or damaged, or its size is not that of the others.
        """
        try:
            with ThreadPoolExecutor(8) as threads:
                return torch.stack(list(threads.map(_read_png, [self.files[row] for row in rows])))
        except (ValueError, OSError, RuntimeError, SyntaxError) as error:
            raise UserError(f"{self.folder}: images cannot be read ({error}); sample again") from error


def read_samples(folder: str | Path) -> Samples:
    """The finished samples of a folder, in order; their images are not opened.

    Raises:
        UserError: the folder holds no finished samples, or they are damaged.
    """
    folder = Path(folder)
    path = folder / "samples.json"
    if not os.path.lexists(path):
        what = "holds no finished samples (no samples.json)" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; expected the output of `smalti sample`")
    found = read_json_mapping(path)
    try:
        entries = found["images"]
        labels = [-1 if entry["label"] is None else int(entry["label"]) for entry in entries]
        logprobs = [float(entry["logprob"]) for entry in entries]
        files, weights = [folder / entry["file"] for entry in entries], dict(found["request"]["weights"])
        prompts = [str(entry["prompt"]) for entry in entries] if found["request"].get("prompts") else None
        return Samples(folder, files, labels, found["classes"], logprobs, weights, prompts)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as what `smalti sample` wrote ({error}); sample again") from error


def image_name(index: int, title: str = "") -> str:
    """Where image `index` stands in the folder: images/00003_red-circle.png."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower()[:80]
    return f"images/{index:05d}{'_' + slug if slug else ''}.png"


def read_note(path: Path) -> dict[str, Any]:
    """What an image says of itself (index, label, seed, logprob, request); empty where it is torn or not ours."""
    if not path.is_file():  # reading a pipe would never end
        return {}
    try:
        with Image.open(path) as image:
            note = parse_json(image.info["smalti"], path)
            image.load()  # a torn file has its text all the same
        return note if isinstance(note, dict) else {}
    except (OSError, KeyError, ValueError, SyntaxError, UserError):
        return {}


def draw_samples(path: Path, images: Sequence[Path], titles: Sequence[str], cycle: int) -> None:
    """The first images as one figure. Titles repeat after `cycle` images: one column a title where they are few."""
    aligned = 2 <= cycle <= GRID_COLUMNS
    whole = max(d for d in range(1, GRID_COLUMNS + 1) if cycle % d == 0)  # whole rows make up a turn of the labels
    columns = cycle if aligned else whole if whole > 3 else min(GRID_COLUMNS, max(1, round(len(images) ** 0.5)))
    shown = min(len(images), columns * GRID_ROWS)
    save_grid(
        path,
        [_read_png(image) for image in images[:shown]],
        columns,
        captions=titles[:shown] if any(titles) and not aligned else None,
        column_labels=titles[:columns] if any(titles) and aligned else None,
    )


def _read_png(path: Path) -> UInt8[Tensor, "c h w"]:
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
