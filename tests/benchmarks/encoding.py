"""How fast `smalti encode` is against what it is made of: the encoder's bare forward, and the decoding of PNGs.

    python tests/benchmarks/encoding.py [--images 8192] [--repeats 5] [--device cpu|cuda]

Everything takes turns in one run, and the best of each counts, because other work on the machine only ever slows. All
use the same cores and passes of the same size. The bare forward is `tokenizer.encode` on batches of uint8 images that
are in memory (on the device) already, in a plain loop; on a CPU also side by side, a core for each pass, which is
quicker. The bare decoding is what PIL makes of PNG bytes, by one thread: more threads would wait for each other.
`encode` counts reading, encoding and writing.

Forward and decoding share the cores of a CPU, so that one of the bare rates cannot be reached by doing both in full:
their sum is the time of the quickest forward and of PIL's decoding, one after the other, with every core busy.
"""

import argparse
import gzip
import io
import os
import struct
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from pipelines.data import DataConfig
from pipelines.data.preprocess import Preprocess
from pipelines.encode import encode
from pipelines.models.checkpoint import load_tokenizer, save_tokenizer
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.encoding_spec import compute_batch
from pipelines.tokens.shard_encoder import encode_pass, in_order, one_core_a_thread
from tokenizer import Autoencoder, AutoencoderConfig

SIZE = 28
CORES = torch.get_num_threads()
PREPROCESS = Preprocess(mode="L", size=SIZE)


def make_pictures(images: int) -> np.ndarray:
    """Smooth grey pictures (n, 28, 28), about as large as PNGs of clothes and digits."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 256, (images, 7, 7), dtype=np.uint8)
    large = [Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for picture in small]
    return np.stack([np.asarray(picture) for picture in large])


def png_bytes(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def write_sources(folder: Path, pictures: np.ndarray, encoded: list[bytes]) -> dict[str, DataConfig]:
    """The same pictures as MNIST's files, which are held in memory, as a folder of PNGs and as Parquet."""
    raw = folder / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        labels = np.zeros(len(pictures), np.uint8)
        header = struct.pack(">IIII", 2051, len(pictures), SIZE, SIZE)
        for name, content in (
            (f"{split}-images-idx3-ubyte", header + pictures.tobytes()),
            (f"{split}-labels-idx1-ubyte", struct.pack(">II", 2049, len(labels)) + labels.tobytes()),
        ):
            (raw / name).write_bytes(content)
            (raw / f"{name}.gz").write_bytes(gzip.compress(b""))
    (folder / "png" / "test").mkdir(parents=True)
    for row, content in enumerate(encoded):
        (folder / "png" / "test" / f"{row:06d}.png").write_bytes(content)
    (folder / "png" / "train").mkdir()
    (folder / "png" / "train" / "0.png").write_bytes(encoded[0])
    rows = pa.array([{"bytes": content, "path": None} for content in encoded])
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": rows}), folder / f"{split}.parquet")
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "test")}
    cache = {"arguments": {"cache_dir": str(folder / "cache")}}
    sources: dict[str, dict[str, Any]] = {
        "memory": {"kind": "torchvision", "name": "MNIST", "root": str(folder / "mnist"), "download": False},
        "folder of PNGs": {"kind": "huggingface", "path": str(folder / "png"), **cache},
        "Parquet": {"kind": "huggingface", "path": "parquet", "data_files": files, **cache},
    }
    return {
        name: DataConfig.model_validate({"source": source, "preprocess": PREPROCESS})
        for name, source in sources.items()
    }


def write_tokenizer(folder: Path, pictures: np.ndarray) -> None:
    """512 codes that have seen a batch; speed does not depend on training."""
    torch.manual_seed(0)
    config = {
        "image_size": SIZE,
        "channels": 1,
        "backbone": {"kind": "conv", "widths": (64, 128), "residual_blocks": 2, "residual_width": 64},
        "bottleneck": {"kind": "vq", "num_codes": 512, "dim": 64},
        "likelihood": {"kind": "normal"},
    }
    model = Autoencoder(AutoencoderConfig.model_validate(config))
    model.train()(torch.from_numpy(pictures[:256, None].copy()))
    save_tokenizer(folder, model, PREPROCESS)


@torch.inference_mode()
def bare_forward(model: Autoencoder, batches: list[torch.Tensor]) -> float:
    device = next(model.parameters()).device
    began = time.perf_counter()
    for batch in batches:
        model.encode(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return sum(len(batch) for batch in batches) / (time.perf_counter() - began)


def forward_side_by_side(model: Autoencoder, batches: list[torch.Tensor]) -> float:
    began = time.perf_counter()
    with one_core_a_thread():
        for _ in in_order(partial(encode_pass, model), batches, CORES, 2 * CORES):
            pass
    return sum(len(batch) for batch in batches) / (time.perf_counter() - began)


def bare_decoding(encoded: list[bytes]) -> float:
    began = time.perf_counter()
    for content in encoded:
        np.asarray(Image.open(io.BytesIO(content)))
    return len(encoded) / (time.perf_counter() - began)


@torch.inference_mode()
def unguarded_agreement(model: Autoencoder, images: torch.Tensor) -> tuple[int, int]:
    """Tokens that differ between batches of 1 and of 64 when each is one forward pass of that size."""
    many = torch.cat([_codes(model, batch) for batch in images.split(64)])
    one = torch.cat([_codes(model, batch) for batch in images.split(1)])
    return int((many != one).sum()), many.numel()


def _codes(model: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    codes = model.encode(images).codes
    assert codes is not None
    return codes


def report(best: dict[str, float], on_cpu: bool) -> None:
    forward, decoding = best["bare forward"], best["bare decoding"]
    quickest = max(rate for name, rate in best.items() if "forward" in name)
    for name, rate in best.items():
        text = f"{name:28s} {rate:10,.0f} images/s"
        if name.startswith("encode"):
            decoded = name != "encode from memory"
            bound = min(forward, CORES * decoding) if decoded else forward
            text += f" {rate / bound:7.1%} of the slower bare rate (goal: 95 %)"
            if on_cpu:
                both = 1 / (1 / quickest + decoded / (CORES * decoding))
                text += f", {rate / quickest:.1%} of the quickest forward, {rate / both:.1%} of both in sum"
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    device = torch.device(arguments.device)
    print(f"{arguments.images:,} images, {device}, {CORES} cores, torch {torch.__version__}")
    pictures = make_pictures(arguments.images)
    encoded = [png_bytes(picture) for picture in pictures]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = write_sources(folder, pictures, encoded)
        write_tokenizer(folder / "tokenizer", pictures)
        model = load_tokenizer(folder / "tokenizer", device).model
        batches = list(torch.from_numpy(pictures[:, None].copy()).to(device).split(compute_batch(SIZE, device)))
        outputs = (folder / f"tokens-{number}" for number in range(10**6))

        def encode_from(source: str) -> float:
            return encode(folder / "tokenizer", sources[source], next(outputs), splits=("test",)).rate

        measured: dict[str, Callable[[], float]] = {
            "bare forward": lambda: bare_forward(model, batches),
            **({"bare forward, side by side": lambda: forward_side_by_side(model, batches)} if on_cpu else {}),
            "bare decoding": lambda: bare_decoding(encoded),
            **{f"encode from {source}": partial(encode_from, source) for source in sources},
        }
        bare_forward(model, batches[:8])  # warm up
        best = dict.fromkeys(measured, 0.0)
        for _ in range(arguments.repeats):
            for name, measure in measured.items():
                best[name] = max(best[name], measure())
        report(best, on_cpu)

        for batch_size in (1, 64):
            output = folder / f"by-{batch_size}"
            encode(folder / "tokenizer", sources["memory"], output, splits=("test",), batch_size=batch_size)
        one, many = (TokenDataset.open(folder / f"by-{size}").split("test").tokens for size in (1, 64))
        print(f"batch sizes 1 and 64: {(one != many).sum()} of {one.size:,} tokens differ")
        differing, total = unguarded_agreement(model, torch.from_numpy(pictures[:2000, None].copy()).to(device))
        print(f"without passes of one size it would be {differing} of {total:,}")


if __name__ == "__main__":
    main()
