"""Small data sets on disk, in the formats that the sources read."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data import DataConfig

WHOLE = {"validation_fraction": 0, "test_fraction": 0}


def config(source: dict, mode: str = "RGB", size: int = 32, crop: str = "center", **fields) -> DataConfig:
    preprocess = {"mode": mode, "size": size, "crop": crop}
    return DataConfig.model_validate({"source": source, "preprocess": preprocess, **fields})


def write_table(path, **columns):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    if isinstance(columns["image"][0], bytes):
        columns["image"] = [{"bytes": content, "path": None} for content in columns["image"]]
    write_table(pa.table(columns), path)
    return {"kind": "huggingface", "path": "parquet", "data_files": str(path)}


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


def build_example(name: str, request: pytest.FixtureRequest) -> DataConfig:
    """A small data set of a source; EXAMPLES lists the names by kind of source."""
    path = request.getfixturevalue
    carved = {"validation_fraction": 0.2, "test_fraction": 0.2}
    torchvision = {"kind": "torchvision", "download": False}
    match name:
        case "shapes":
            source, mode, size = {"kind": "shapes", "train": 30, "validation": 9, "test": 8}, "RGB", 32
        case "composition":
            shares = {"relation_fraction": 0.3, "count_fraction": 0.2, "paraphrases": True}
            source, mode, size = {"kind": name, "train": 30, "validation": 9, "test": 8, **shares}, "RGB", 32
        case "fashion" | "fashion resized":
            source = {**torchvision, "name": "FashionMNIST", "root": str(path("fashion"))}
            mode, size = ("L", 28) if name == "fashion" else ("RGB", 32)
        case "fake":
            source = {**torchvision, "name": "FakeData", "arguments": {"size": 20, "image_size": [3, 40, 30]}}
            mode, size = "RGB", 32
        case "parquet":
            columns = {"key": "key", "label": "category", "text": "text"}
            source = {"kind": "huggingface", "path": "parquet", "data_files": str(path("parquet")), **columns}
            mode, size = "RGB", 32
        case "folder":
            source = {"kind": "huggingface", "path": str(path("folder")), "text": "text"}
            mode, size = "RGB", 32
        case "class folders":
            source = {"kind": "huggingface", "path": "imagefolder", "data_dir": str(path("class_folders"))}
            mode, size = "RGB", 32
        case "partly labelled":
            files = str(path("partly_labelled"))
            source = {"kind": "huggingface", "path": "parquet", "data_files": files, "label": "label"}
            mode, size = "RGB", 32
        case _:
            raise KeyError(name)
    return DataConfig.model_validate({"source": source, "preprocess": {"mode": mode, "size": size}, **carved})


EXAMPLES = {
    "shapes": ["shapes"],
    "composition": ["composition"],
    "torchvision": ["fashion", "fashion resized", "fake"],
    "huggingface": ["parquet", "folder", "class folders", "partly labelled"],
}


@pytest.fixture
def example(request):
    """The recipe of an example by its name."""
    return lambda name: build_example(name, request)


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory) -> Path:
    """Pictures of cats and dogs, in a folder each."""
    root = tmp_path_factory.mktemp("classes")
    for number in range(12):
        folder = root / "train" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise_image(number).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def partly_labelled(tmp_path_factory) -> Path:
    """30 pictures, a third of them cats, a third dogs. A sixth has the label null, a sixth -1."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    columns = {"image": [noise_image(i) for i in range(30)], "label": [0, 1, None, 0, 1, -1] * 5}
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    path = tmp_path_factory.mktemp("partly") / "train.parquet"
    Dataset.from_dict(columns, features).to_parquet(path)
    return path


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """One entry for every picture of Hugging Face that was decoded since."""
    from pipelines.data.image_files import open_image

    calls: list[int] = []
    monkeypatch.setattr("pipelines.data.huggingface.open_image", lambda *a: (calls.append(1), open_image(*a))[1])
    return calls
