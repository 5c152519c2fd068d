"""Figures for people and images as files: tensors to PIL, PNGs, and grids of tiles with captions and labels."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from pipelines.base.atomic_files import replacing, sync

GROUND, INK, GAP = (255, 255, 255), (60, 60, 60), 3
MAX_SCALE, MAX_WIDTH = 4, 1600

Images: TypeAlias = Tensor | Sequence[Tensor | Image.Image]


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [0, 1] -> uint8, rounded to the nearest level and clamped; uint8 passes unchanged."""
    if images.dtype == torch.uint8:
        return images
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """(1 or 3, H, W), uint8 or float in [0, 1] -> a PIL image in mode L or RGB."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image is (1 or 3, H, W), got {tuple(image.shape)}")
    array: np.ndarray = to_uint8(image.detach()).cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if image.shape[0] == 1 else np.ascontiguousarray(array))


def save_png(
    path: str | Path, image: Tensor | Image.Image, text: Mapping[str, str] | None = None, durable: bool = True
) -> None:
    """Write one PNG atomically; `text` goes into its tEXt chunks, where `Image.open(path).text` finds it.

    `durable`: the file survives a crash of the machine from now on, for which it waits for the disk.
    """
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    pixels = to_pil(image) if isinstance(image, Tensor) else image
    with replacing(path, durable) as temporary:
        pixels.save(temporary, format="PNG", pnginfo=info)


def save_images(
    paths: Sequence[str | Path],
    images: Images,
    texts: Sequence[Mapping[str, str]] | None = None,
) -> None:
    """Write many PNGs by several threads, each file atomically; as `save_png`, one folder at a time synced at the end.

    A crash of the machine (not of the program) may leave the last ones empty.
    """
    if len(paths) != len(images) or (texts is not None and len(texts) != len(paths)):
        raise ValueError(f"one path and one text an image: got {len(paths)} paths and {len(images)} images")
    pixels = to_uint8(images.detach()).cpu() if isinstance(images, Tensor) else images
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        jobs = [
            threads.submit(save_png, path, image, text, False)
            for path, image, text in zip(paths, pixels, texts or [None] * len(paths), strict=True)
        ]
    for job in jobs:
        job.result()
    for folder in {Path(path).parent for path in paths}:
        sync(folder)


def save_grid(
    path: str | Path,
    images: Images,
    columns: int,
    captions: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    scale: int | None = None,
) -> Path:
    """Lay images of one size out in rows of `columns` and write one PNG.

    `captions` stand under each tile, `row_labels` left of each row, `column_labels` above each column; a text too wide
    for its place ends in "…". Tiles are enlarged by the whole number `scale` (chosen if None): pixels stay square.
    """
    tiles = [to_pil(image) if isinstance(image, Tensor) else image for image in images]
    if not tiles or columns < 1:
        raise ValueError(f"a grid needs at least one image and one column, got {len(tiles)} and {columns}")
    if len({tile.size for tile in tiles}) > 1:
        raise ValueError(f"tiles of a grid have one size, got {sorted({tile.size for tile in tiles})}")
    if captions is not None and len(captions) != len(tiles):
        raise ValueError(f"one caption an image: got {len(captions)} captions and {len(tiles)} images")
    rows, columns = -(-len(tiles) // columns), min(columns, len(tiles))
    width, height = tiles[0].size
    scale = scale or max(1, min(MAX_SCALE, MAX_WIDTH // (columns * width), 128 // width))
    width, height = width * scale, height * scale
    font = ImageFont.load_default(size=max(9, min(13, width // 5)))
    line = int(font.size) + 4  # type: ignore[attr-defined]
    left = max((int(font.getlength(label)) for label in row_labels), default=0) + 2 * GAP if row_labels else GAP
    top = line + GAP if column_labels else GAP
    step_x, step_y = width + GAP, height + GAP + (line if captions is not None else 0)

    grey = all(tile.mode == "L" for tile in tiles)
    sheet = Image.new("RGB", (left + columns * step_x, top + rows * step_y), GROUND)
    draw = ImageDraw.Draw(sheet)

    def write(text: str, x: float, y: float, anchor: str, room: float) -> None:
        draw.text((x, y), _fit(text, font, room), fill=INK, font=font, anchor=anchor)

    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        x, y = left + column * step_x, top + row * step_y
        sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST), (x, y))
        if captions is not None:
            write(captions[index], x + width / 2, y + height + line / 2, "mm", width)
    for row, label in enumerate((row_labels or ())[:rows]):
        write(label, left - GAP, top + row * step_y + height / 2, "rm", left)
    for column, label in enumerate((column_labels or ())[:columns]):
        write(label, left + column * step_x + width / 2, top - GAP - line / 2, "mm", width)
    save_png(path, sheet.convert("L") if grey else sheet)
    return Path(path)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """The longest beginning of `text` that fits into `room` pixels, marked by "…" where something is missing."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"
