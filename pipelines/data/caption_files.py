"""Captions in text files, each beside its image: 00017.jpg and 00017.txt."""

import os
from pathlib import Path

from pipelines.base.documents import read_text

MAX_CAPTION_BYTES = 2**16


def caption_beside(image: str | None, extension: str) -> str | None:
    """The text of the file beside an image that has its name and this extension, as one line; None where there is no
    such file, or nothing in it.

    Raises:
        UserError: it is no UTF-8 text, or larger than 64 KiB.
    """
    if image is None or "://" in image:  # the image stands in the data set, in an archive or on the hub
        return None
    path = Path(image).with_suffix(extension)
    if not os.path.lexists(path):
        return None
    return " ".join(read_text(path, MAX_CAPTION_BYTES).split()) or None
