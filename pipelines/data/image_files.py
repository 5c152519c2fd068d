"""Opening image files without trusting them."""

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image

# What PIL's decoders raise on broken files, beside OSError.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, struct.error)
BROKEN = (*BROKEN, OverflowError, MemoryError, RuntimeError, AssertionError, zlib.error)


class TooLarge(ValueError):
    """A header that announces more pixels than the recipe allows."""


@contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
    """Within this context PIL refuses, from the header alone, whatever has more than `max_pixels` pixels.

    PIL warns above MAX_IMAGE_PIXELS and raises above twice that; both become `TooLarge`. Other warnings about odd but
    readable files are silenced: nobody can act on them in the middle of an epoch.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        size = f"{int(found[1]):,} pixels" if found else "too many pixels"
        raise TooLarge(f"the picture has {size}, max_pixels is {max_pixels:,}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def decode(content: bytes | str | Path, max_pixels: int) -> Image.Image:
    """The first frame of an encoded image (bytes or the path of a file), pixels loaded.

    Raises:
        TooLarge: more than max_pixels pixels, by the header.
        OSError and the others of BROKEN: the file is missing, truncated, or no image.
    """
    with pixel_limit(max_pixels), Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
        image.load()
        return image


def reason(error: BaseException) -> str:
    """An error in a few words for a person: PIL's message without the address of the buffer."""
    text = re.sub(r" (in )?<[^>]*object at 0x[0-9a-f]+>", "", str(error)).strip()
    return text or type(error).__name__
