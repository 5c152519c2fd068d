"""Files of weights that are none."""

import json
import struct
from collections.abc import Iterator
from functools import partial

from tests.benchmarks.hostile_inputs.case import Case
from tests.benchmarks.hostile_inputs.fixture import write


def with_length(header: bytes, length: int | None = None) -> bytes:
    """A file's header after its length, which may be a wrong one."""
    return struct.pack("<Q", len(header) if length is None else length) + header


HUGE = {"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
CONTENTS = {
    "empty": b"",
    "four bytes": b"\0\0\0\0",
    "header beyond the file": with_length(b"{}", 2**60),
    "header of a gigabyte": with_length(b"{}", 2**30),
    "header that is no JSON": with_length(b"x" * 100),
    "header that is a list": with_length(b"[]"),
    "deep header": with_length(b"[" * 100_000),
    "huge tensor": with_length(json.dumps(HUGE).encode()),
    "no tensors": with_length(b"{}"),
    "a pickle": b"\x80\x04\x95cos\nsystem\n",
    "text": b"hello" * 100,
}


def broken_weights() -> Iterator[Case]:
    sample = ["sample", "done/image_pipeline", "-o", "out", "-n", "2"]
    for name, content in CONTENTS.items():
        for part in ("tokenizer", "prior"):
            damage = partial(write, f"done/image_pipeline/{part}/model.safetensors", content)
            yield Case("safetensors", f"{part} {name}", sample, damage)
