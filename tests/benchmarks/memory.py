"""How much memory a data set of 50 million tokens takes to write, measure and train on, and one of 10^7 images to open.

    python tests/benchmarks/memory.py [--rows 195313] [--images 10000000]

Each phase is a process of its own, so that its peak is its own; the first line says what the imports alone take. The
tokens are real ones, written by `smalti encode`: 256 of 1,024 codes an image, from a tokenizer that is small enough to
be quick. The images of the second part are a Parquet file of small PNGs.
"""

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

GOAL = 1.5  # GiB, for everything that a data set of 50 million tokens needs


def data_config(rows: int):
    from pipelines.data import DataConfig

    source = {"kind": "shapes", "train": rows, "validation": 64, "test": 64}
    return DataConfig.model_validate({"source": source, "preprocess": {"mode": "RGB", "size": 32}})


def import_libraries(folder: Path, rows: int) -> None:
    import pipelines.encode
    import pipelines.inspect
    import pipelines.train  # noqa: F401


def encode_tokens(folder: Path, rows: int) -> None:
    """Encode, count the baselines, measure the figures, hash the files."""
    import torch

    from pipelines.data.preprocess import Preprocess
    from pipelines.encode import encode
    from pipelines.models.checkpoint import save_tokenizer
    from tokenizer import Autoencoder, AutoencoderConfig

    torch.manual_seed(0)
    config = {
        "image_size": 32,
        "channels": 3,
        "backbone": {"kind": "conv", "widths": (8,), "residual_blocks": 0},
        "bottleneck": {"kind": "fsq", "levels": (8, 8, 4, 4)},
        "likelihood": {"kind": "normal"},
    }
    model = Autoencoder(AutoencoderConfig.model_validate(config))
    last = [part for part in model.encoder.modules() if isinstance(part, torch.nn.Conv2d)][-1]
    torch.nn.init.normal_(last.weight)  # so that an untrained encoder uses most of the codes
    save_tokenizer(folder / "tokenizer", model, Preprocess(mode="RGB", size=32))
    encode(folder / "tokenizer", data_config(rows), folder / "tokens", splits=("train", "validation"))


def inspect_tokens(folder: Path, rows: int) -> None:
    """Count every token, look for places of the most and the least used codes, draw the figure."""
    from pipelines.inspect import inspect

    inspect(folder / "tokens", split="train")


def read_tokens(folder: Path, rows: int) -> None:
    """What the training of a prior holds: all tokens in two bytes each, a batch, the baselines."""
    from pipelines.tokens.dataset import TokenDataset

    dataset = TokenDataset.open(folder / "tokens")
    tokens, held_out = dataset.split("train"), dataset.split("validation")
    dataset.baselines().bits_per_token(held_out.batch(range(len(held_out)))["codes"])
    tokens.batch(range(0, rows, rows // 128))
    print(f"{tokens.tokens.size:,} tokens in {tokens.tokens.nbytes / 2**20:,.0f} MiB", file=sys.stderr)


def write_images(folder: Path, images: int) -> None:
    """A Parquet file of small PNGs; a thousand different ones, so that writing it is quick."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    draw, different = np.random.default_rng(0), []
    for _ in range(1000):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 2, (8, 8), dtype=np.uint8) * 255).save(buffer, "PNG")
        different.append({"bytes": buffer.getvalue(), "path": None})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array(different, kind)
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    (folder / "images").mkdir()
    with pq.ParquetWriter(folder / "images" / "train.parquet", schema) as writer:
        for start in range(0, images, 100_000):
            picked = pa.array(np.arange(start, min(start + 100_000, images)) % 1000)
            writer.write_table(pa.table([rows.take(picked), picked], schema=schema))


def train_first_step(folder: Path, images: int) -> None:
    """Open the data set, carve its splits, and read the first batch of a training run."""
    from pipelines.data import DataConfig, open_images, training_loader

    files, arguments = str(folder / "images" / "train.parquet"), {"cache_dir": str(folder / "cache")}
    source = {"kind": "huggingface", "path": "parquet", "data_files": files, "arguments": arguments}
    config = DataConfig.model_validate({"source": source, "preprocess": {"mode": "L", "size": 8}})
    began = time.perf_counter()
    dataset, held_out = open_images(config, "train"), open_images(config, "validation")
    opened = time.perf_counter()
    batch = next(iter(training_loader(dataset, 0, 128, 1)))
    print(
        f"{len(dataset):,} and {len(held_out):,} images opened in {opened - began:.1f} s, first batch "
        f"{tuple(batch['image'].shape)} after {time.perf_counter() - opened:.2f} s more",
        file=sys.stderr,
    )


def reopen(folder: Path, images: int) -> None:
    """The same with the library's own cache filled: what every later command does."""
    train_first_step(folder, images)


TOKEN_PHASES: dict[str, Callable[[Path, int], None]] = {
    "imports": import_libraries,
    "encode": encode_tokens,
    "inspect": inspect_tokens,
    "prior's data": read_tokens,
}
IMAGE_PHASES: dict[str, Callable[[Path, int], None]] = {
    "write": write_images,
    "first command": train_first_step,
    "later commands": reopen,
}
PHASES = TOKEN_PHASES | IMAGE_PHASES


def measure(phase: str, folder: Path, size: int) -> float:
    """Run one phase in a process of its own; prints and returns its peak in GiB."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--phase", phase, "--folder", str(folder), "--size", str(size)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if found.returncode:
        raise SystemExit(f"{phase} failed")
    peak = float(found.stdout.splitlines()[-1])
    print(f"{phase:15s} {peak:5.2f} GiB at most, {time.perf_counter() - began:6.1f} s", flush=True)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=195_313)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        PHASES[arguments.phase](arguments.folder, arguments.size)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.rows:
            print(f"{arguments.rows:,} images of 256 tokens: {arguments.rows * 256:,} tokens")
            worst = max(measure(phase, Path(folder), arguments.rows) for phase in TOKEN_PHASES)
            print(f"most: {worst:.2f} GiB (goal: at most {GOAL} GiB)")
        if arguments.images:
            print(f"{arguments.images:,} images in one Parquet file")
            for phase in IMAGE_PHASES:
                measure(phase, Path(folder), arguments.images)


if __name__ == "__main__":
    main()
