"""Small data sets on disk, in the formats that the sources read."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def noise_image(seed: int, width: int = 20, height: int = 16, channels: int = 3) -> Image.Image:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def huge_png(width: int = 40_000, height: int = 30_000) -> bytes:
    """A valid header that announces 1.2 gigapixels, and nothing behind it."""
    content = bytearray(png(Image.new("L", (1, 1))))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="session")
def fashion(tmp_path_factory) -> Path:
    """A root with FashionMNIST's raw files: 40 training and 12 test images."""
    root, random = tmp_path_factory.mktemp("torchvision"), np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 12)):
        raw = root / "FashionMNIST" / "raw"
        write_idx(raw / f"{stem}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{stem}-labels-idx1-ubyte", np.arange(count) % 10)
    return root


@pytest.fixture(scope="session")
def parquet(tmp_path_factory) -> Path:
    """30 rows like the emoji set: RGBA PNGs with key, text and category. Row 4 is cut off, row 9 is no image, row 17 is
    huge by its header.
    """
    import pyarrow as pa
    from pyarrow.parquet import write_table

    content = [png(noise_image(i, 64, 64, 4)) for i in range(30)]
    content[4], content[9], content[17] = content[4][:200], b"not an image", huge_png()
    table = pa.table(
        {
            "key": [f"emoji-{i}" for i in range(30)],
            "image": pa.array(
                [{"bytes": c, "path": None} for c in content],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "text": [f"picture number {i}" for i in range(30)],
            "category": [("Symbols", "Animals", "Flags")[i % 3] for i in range(30)],
        }
    )
    path = tmp_path_factory.mktemp("parquet") / "train.parquet"
    write_table(table, path)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """An image folder with captions in metadata.jsonl; 12 training and 5 test images, one of them broken."""
    root = tmp_path_factory.mktemp("folder")
    for split, count in (("train", 12), ("test", 5)):
        (root / split).mkdir()
        lines = []
        for i in range(count):
            noise_image(i).save(root / split / f"{i:02d}.png")
            lines.append(f'{{"file_name": "{i:02d}.png", "text": "{split} picture {i}"}}\n')
        (root / split / "metadata.jsonl").write_text("".join(lines))
    (root / "train" / "03.png").write_bytes(b"broken")
    return root
