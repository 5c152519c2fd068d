"""Opening image files without trusting them."""

import os
import re
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipelines.data.plain_png import decode_plain_png

# What PIL's decoders raise on broken files, beside OSError.
DECODE_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, struct.error),
    *(OverflowError, MemoryError, RuntimeError, AssertionError, zlib.error, Image.DecompressionBombError, Warning),
)

SMALL_FILE = 2**14  # bytes

# PIL warns of odd but readable files. Nobody can act on that in the middle of an epoch.
warnings.filterwarnings("ignore", module=r"PIL\.")


class TooLarge(ValueError):
    """A header that announces more pixels than the recipe allows."""


def open_image(content: bytes | str | Path, max_pixels: int) -> Image.Image:
    """The first frame of an encoded image (bytes or the path of a file), pixels loaded. Safe in any thread.

    Raises:
        TooLarge: more than max_pixels pixels, by the header.
        OSError and the others of DECODE_ERRORS: the file is missing, truncated, or no image.
    """
    beginning = content if isinstance(content, bytes) else _read_beginning(content)
    if (plain := decode_plain_png(beginning, max_pixels)) is not None:
        return plain
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # PIL's own limit, 89 megapixels, would refuse what the recipe allows
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
            check_size(image, max_pixels)
            image.load()
            return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(int(found[1]) if found else None, max_pixels) from error


def _read_beginning(path: str | Path) -> bytes:
    """All of a small file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, SMALL_FILE)
    finally:
        os.close(descriptor)


def check_size(image: Image.Image, max_pixels: int) -> None:
    """Raises TooLarge where an image, decoded or not, has more than max_pixels pixels."""
    if (pixels := image.width * image.height) > max_pixels:
        raise _too_large(pixels, max_pixels)


def _too_large(pixels: int | None, max_pixels: int) -> TooLarge:
    size = "too many" if pixels is None else f"{pixels:,}"
    return TooLarge(f"the image has {size} pixels, max_pixels is {max_pixels:,}")


def reason(error: BaseException) -> str:
    """An error in a few words for a person: PIL's message without the address of the buffer."""
    text = re.sub(r" (in )?<[^>]*object at 0x[0-9a-f]+>", "", str(error)).strip()
    return text or type(error).__name__
