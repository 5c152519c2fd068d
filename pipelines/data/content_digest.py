"""A digest of the images of a split as they are stored: nothing is decoded, and it does not matter where they lie."""

import hashlib
import json
import os
from collections.abc import Sequence

from pipelines.data.source import RowContent

ROWS_AT_ONCE = 4096
SAMPLED_FILES = 16_384  # evenly spread files of which the beginning is read; of the others only the size
HEAD_BYTES = 2**14


class ContentDigest:
    """Sees every row of a split of `length` rows in order: its columns, the size of its encoded image, and the first
    16 KiB of that image where the data set itself holds it, or its file is among up to 16,384 evenly spread ones.

    A file that was replaced by one of the same size, and is not among those, is not noticed.
    """

    def __init__(self, length: int):
        self._stride, self._row = max(1, -(-length // SAMPLED_FILES)), 0
        self._digest = hashlib.sha256()

    def update(self, contents: Sequence[RowContent]) -> None:
        columns, sizes = [], []
        for content in contents:
            columns.append(content.columns)
            picture = content.picture
            if isinstance(picture, bytes):
                sizes.append(len(picture))
                self._digest.update(picture[:HEAD_BYTES])
            elif picture is not None:
                sizes.append(self._file(picture))
            self._row += 1
        self._digest.update(json.dumps([columns, sizes]).encode())

    def _file(self, path: str) -> int | None:
        """The size of a file, None where it cannot be read."""
        try:
            if self._row % self._stride == 0:
                with open(path, "rb") as file:
                    self._digest.update(file.read(HEAD_BYTES))
            return os.stat(path).st_size
        except OSError:
            return None

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
