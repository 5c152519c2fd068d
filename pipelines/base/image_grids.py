"""Figures for people and images as files: tensors to PIL, PNGs, and grids of tiles with captions and labels."""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from pipelines.base.atomic_files import replacing, sync

BACKGROUND, TEXT, GAP = (255, 255, 255), (60, 60, 60), 3
MAX_SCALE, MAX_WIDTH = 4, 1600
MAX_LINES = 4  # of a text above or under a tile
SMALL_SECONDS = 400e-6  # two threads write images that take longer more quickly than one does (measured)
TIMED = 4  # images whose writing is timed

Images: TypeAlias = Tensor | Sequence[Tensor | Image.Image]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


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
    encoded = BytesIO()  # quicker for PIL than a file
    pixels.save(encoded, format="PNG", pnginfo=info)
    with replacing(path, durable) as temporary:
        temporary.write_bytes(encoded.getbuffer())


def save_images(
    paths: Sequence[str | Path],
    images: Images,
    texts: Sequence[Mapping[str, str]] | None = None,
) -> None:
    """Write many PNGs, each atomically, large ones by several threads; as `save_png`, one folder at a time synced at
    the end.

    A crash of the machine (not of the program) may leave the last ones empty. Threads that write small images would
    wait for each other's turn to run Python, which takes longer than the images.
    """
    if len(paths) != len(images) or (texts is not None and len(texts) != len(paths)):
        raise ValueError(f"one path and one text an image: got {len(paths)} paths and {len(images)} images")
    pixels = to_uint8(images.detach()).cpu() if isinstance(images, Tensor) else images

    def save(place: int) -> float:
        began = time.perf_counter()
        save_png(paths[place], pixels[place], None if texts is None else texts[place], durable=False)
        return time.perf_counter() - began

    times, rest = sorted(map(save, range(min(TIMED, len(paths))))), range(TIMED, len(paths))
    if rest and times[TIMED // 2] > SMALL_SECONDS:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            list(threads.map(save, rest))
    else:
        list(map(save, rest))
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
    """Write one PNG of `image_grid`."""
    save_png(path, image_grid(images, columns, captions, row_labels, column_labels, scale))
    return Path(path)


def save_animation(path: str | Path, frames: Sequence[Image.Image], milliseconds: int = 120) -> Path:
    """Write one GIF that repeats forever. Frames have one size."""
    with replacing(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return Path(path)


def image_grid(
    images: Images,
    columns: int,
    captions: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Images of one size, laid out in rows of `columns`.

    `captions` stand under each tile, `row_labels` left of each row, `column_labels` above each column. The words of a
    text that is too wide for its place go to the next line; one that is too long ends in "…". Tiles are enlarged by
    the whole number `scale` (chosen if None): pixels stay square.
    """
    tiles = [to_pil(image) if isinstance(image, Tensor) else image for image in images]
    _check_tiles(tiles, columns, captions)
    layout = _Layout.of(tiles, columns, captions or (), row_labels or (), column_labels or (), scale)
    sheet = Image.new("RGB", layout.size, BACKGROUND)
    layout.place_tiles(sheet, tiles)
    layout.write_texts(ImageDraw.Draw(sheet))
    grey = all(tile.mode == "L" for tile in tiles)
    return sheet.convert("L") if grey else sheet


def _check_tiles(tiles: Sequence[Image.Image], columns: int, captions: Sequence[str] | None) -> None:
    if not tiles or columns < 1:
        raise ValueError(f"a grid needs at least one image and one column, got {len(tiles)} and {columns}")
    if len({tile.size for tile in tiles}) > 1:
        raise ValueError(f"tiles of a grid have one size, got {sorted({tile.size for tile in tiles})}")
    if captions is not None and len(captions) != len(tiles):
        raise ValueError(f"one caption an image: got {len(captions)} captions and {len(tiles)} images")


@dataclass(frozen=True)
class _Layout:
    """Where tiles and texts stand on the sheet, in pixels. A tile is (width, height); `left` and `top` are the margins
    for labels, `line` is the height of a line of text, `caption` that of the text under each tile (0 without captions).
    The lines of each caption and of each column label, and the row labels, stand in `texts`.
    """

    rows: int
    columns: int
    width: int
    height: int
    left: int
    top: int
    line: int
    caption: int
    font: Font
    texts: tuple[Sequence[Sequence[str]], Sequence[str], Sequence[Sequence[str]]]

    @classmethod
    def of(
        cls,
        tiles: Sequence[Image.Image],
        columns: int,
        captions: Sequence[str],
        row_labels: Sequence[str],
        column_labels: Sequence[str],
        scale: int | None,
    ) -> Self:
        rows, columns = -(-len(tiles) // columns), min(columns, len(tiles))
        width, height = tiles[0].size
        scale = scale or max(1, min(MAX_SCALE, MAX_WIDTH // (columns * width), 128 // width))
        size = max(9, min(13, width * scale // 5))
        font, line = ImageFont.load_default(size=size), size + 4
        under, above = ([_lines(text, font, width * scale) for text in texts] for texts in (captions, column_labels))
        left = max((int(font.getlength(label)) for label in row_labels), default=0) + 2 * GAP if row_labels else GAP
        top = line * _most_lines(above) + GAP
        sizes = rows, columns, width * scale, height * scale, left, top, line, line * _most_lines(under)
        return cls(*sizes, font, (under, row_labels, above))

    @property
    def size(self) -> tuple[int, int]:
        return self.corner(0, self.columns)[0], self.corner(self.rows, 0)[1]

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """The upper left corner of a tile."""
        return self.left + column * (self.width + GAP), self.top + row * (self.height + GAP + self.caption)

    def place_tiles(self, sheet: Image.Image, tiles: Sequence[Image.Image]) -> None:
        for index, tile in enumerate(tiles):
            enlarged = tile.resize((self.width, self.height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, self.corner(*divmod(index, self.columns)))

    def write_texts(self, draw: ImageDraw.ImageDraw) -> None:
        def write(text: str, x: float, y: float, anchor: str = "mm") -> None:
            draw.text((x, y), text, fill=TEXT, font=self.font, anchor=anchor)

        captions, rows, columns = self.texts
        for index, lines in enumerate(captions):
            x, y = self.corner(*divmod(index, self.columns))
            for i, line in enumerate(lines):
                write(line, x + self.width / 2, y + self.height + (i + 0.5) * self.line)
        for row, label in enumerate(rows[: self.rows]):
            y = self.corner(row, 0)[1] + self.height / 2
            write(_fit(label, self.font, self.left), self.left - GAP, y, "rm")
        for column, lines in enumerate(columns[: self.columns]):
            x = self.corner(0, column)[0] + self.width / 2
            for i, line in enumerate(reversed(lines)):
                write(line, x, self.top - GAP - (i + 0.5) * self.line)


def _most_lines(texts: Sequence[Sequence[str]]) -> int:
    return max(map(len, texts), default=0)


def _lines(text: str, font: Font, space: float) -> list[str]:
    """The text in lines that fit into `space` pixels, broken between words; what is left after the last one is cut."""
    lines, words = [], text.split()
    while words and len(lines) < MAX_LINES - 1:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= space:
            count += 1
        lines.append(_fit(" ".join(words[:count]), font, space))
        words = words[count:]
    return [*lines, _fit(" ".join(words), font, space)] if words or not lines else lines


def _fit(text: str, font: Font, space: float) -> str:
    """The longest beginning of `text` that fits into `space` pixels, marked by "…" where something is missing."""
    if font.getlength(text) <= space:
        return text
    while text and font.getlength(text + "…") > space:
        text = text[:-1]
    return text.rstrip() + "…"
