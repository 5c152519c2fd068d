"""How fast `encode` is against the bare encoder, and whether the batch size changes tokens.

    python tests/benchmarks/encoding.py [--images 10000] [--repeats 5]

Fashion-MNIST where data/FashionMNIST is, else the built-in shapes. The bare rate is that of `tokenizer.encode` on
batches of uint8 images that are in memory already, of the size that `encode` uses. Both take turns and the best of each
counts, because other work on the machine only ever slows. The rate of `encode` counts reading, encoding and writing.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from pipelines.data import DataConfig, ImageDataset, open_images
from pipelines.encode import compute_batch, encode
from pipelines.models.checkpoint import load_tokenizer, save_tokenizer
from pipelines.tokens.dataset import TokenDataset
from tokenizer import Autoencoder, AutoencoderConfig


def data_config(images: int) -> DataConfig:
    if Path("data/FashionMNIST").is_dir():
        source = {"kind": "torchvision", "name": "FashionMNIST", "root": "data", "download": False}
        return DataConfig.model_validate({"source": source, "preprocess": {"mode": "L", "size": 28}})
    source = {"kind": "shapes", "test": images}
    return DataConfig.model_validate({"source": source, "preprocess": {"mode": "RGB", "size": 32}})


def write_tokenizer(folder: Path, data: DataConfig, images: ImageDataset) -> None:
    """512 codes that have seen a batch; speed does not depend on training."""
    torch.manual_seed(0)
    config = {
        "image_size": data.preprocess.size,
        "channels": data.preprocess.channels,
        "backbone": {"kind": "conv", "widths": (64, 128), "residual_blocks": 2, "residual_width": 64},
        "bottleneck": {"kind": "vq", "num_codes": 512, "dim": 64},
        "likelihood": {"kind": "normal"},
    }
    model = Autoencoder(AutoencoderConfig.model_validate(config))
    model.train()(torch.stack([images.read(row).image for row in range(256)]))
    save_tokenizer(folder, model, data.preprocess)


@torch.inference_mode()
def bare_rate(model: Autoencoder, batches: list[torch.Tensor]) -> float:
    began = time.perf_counter()
    for batch in batches:
        model.encode(batch)
    return sum(len(batch) for batch in batches) / (time.perf_counter() - began)


@torch.inference_mode()
def unguarded_agreement(model: Autoencoder, images: torch.Tensor) -> tuple[int, int]:
    """Tokens that differ between batches of 1 and of 64 when each is one forward pass of that size."""
    many = torch.cat([model.encode(batch).codes for batch in images.split(64)])
    one = torch.cat([model.encode(batch).codes for batch in images.split(1)])
    return int((many != one).sum()), many.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    data = data_config(arguments.images)
    images = open_images(data, "test")
    print(f"{len(images):,} images of {data.source.kind}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer", data, images)
        model = load_tokenizer(folder / "tokenizer").model
        size = compute_batch(data.preprocess.size, "cpu")
        loaded = images.read_batch(range(len(images))).image
        bare_rate(model, list(loaded[: 8 * size].split(size)))  # warm up
        rates, bares = [], []
        for repeat in range(arguments.repeats):
            bares.append(bare_rate(model, list(loaded.split(size))))
            rates.append(encode(folder / "tokenizer", data, folder / f"tokens-{repeat}", splits=("test",)).rate)
            print(f"bare {bares[-1]:,.0f} images/s, encode {rates[-1]:,.0f} images/s")
        print(f"encode {max(rates):,.0f} images/s, {max(rates) / max(bares):.1%} of the bare forward rate (goal: 90 %)")

        for batch_size in (1, 64):
            encode(folder / "tokenizer", data, folder / f"by-{batch_size}", splits=("test",), batch_size=batch_size)
        one, many = (TokenDataset.open(folder / f"by-{size}").split("test").tokens for size in (1, 64))
        print(f"batch sizes 1 and 64: {(one != many).sum()} of {one.size:,} tokens differ")
        differing, total = unguarded_agreement(model, loaded[:2000])
        print(f"without passes of one size it would be {differing} of {total:,}")


if __name__ == "__main__":
    main()
