"""What a training step costs beside a bare loop: forward, backward, AdamW, on images that already lie in one tensor.

    python tests/benchmarks/training.py [--steps 200] [--stages tokenizer prior] [--device cpu|cuda] [--compile]

Tokenizer: the digit-sized VQ-VAE of configs/fashion_mnist/tokenizer.yaml (28x28 grey, 7x7 codes out of 512, batch 128),
fed from memory, from a Parquet file and from a folder of PNGs. Prior: configs/fashion_mnist/prior.yaml on the tokens.
Both loops take turns, a few steps each, so that other work on the machine slows both; the ratio is the median over the
turns. Steps are counted after the first epoch; what the first epoch costs is shown beside it. The bare loop does the
same forward and codebook update, and leaves out seeds, clipping, averages, metrics, logs and the loader.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

TURN = 10  # steps in a row
IMAGES = 2048


def smooth_images(count: int) -> Tensor:
    """Grey images with some structure, (count, 1, 28, 28) uint8."""
    coarse = torch.rand(count, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, 28, mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).to(torch.uint8)


def write_sources(folder: Path, images: Tensor) -> dict[str, dict]:
    """The images as a folder of PNGs and as Parquet; returns the `data.source` of each."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    for split in ("train", "validation"):
        (folder / "png" / split).mkdir(parents=True)
        for number, image in enumerate(images if split == "train" else images[:64]):
            Image.fromarray(image[0].numpy()).save(folder / "png" / split / f"{number:05d}.png")
        files = sorted((folder / "png" / split).iterdir())
        rows = {"image": [{"bytes": file.read_bytes(), "path": file.name} for file in files]}
        Dataset.from_dict(rows, features=Features({"image": ImageFeature()})).to_parquet(folder / f"{split}.parquet")
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation")}
    return {
        "parquet": {"kind": "huggingface", "path": "parquet", "arguments": {"data_files": files}},
        "png": {"kind": "huggingface", "path": "imagefolder", "arguments": {"data_dir": str(folder / "png")}},
    }


class InMemory:
    """Batches of one tensor, in an order of their own: what both loops are fed from."""

    def __init__(self, values: dict[str, Tensor], batch_size: int):
        self.values, self.size = values, batch_size
        self.order = torch.randperm(len(next(iter(values.values()))), generator=torch.Generator().manual_seed(1))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            for rows in self.order.split(self.size):
                if len(rows) == self.size:
                    yield {name: value[rows] for name, value in self.values.items()}


def bare_steps(phase, batches: Iterator[dict[str, Tensor]], device: torch.device, learning_rate: float) -> Callable:
    """The loop that everything is held against."""
    phase.to(device).train()
    optimizer = torch.optim.AdamW(phase.trained_parameters().values(), lr=learning_rate)

    def run(count: int) -> None:
        for step in range(count):
            batch = {name: value.to(device, non_blocking=True) for name, value in next(batches).items()}
            optimizer.zero_grad()
            loss, _ = phase(batch, step)
            loss.backward()
            optimizer.step()
            phase.after_step(step)

    return run


def our_steps(task, training, folder: Path, accelerator) -> Callable:
    """The training loop, `count` steps at a time. It logs as always; it neither validates nor saves."""
    from pipelines.base.progress import Silent
    from pipelines.base.signals import StopRequest
    from pipelines.training.loop import TrainingLoop
    from pipelines.training.metrics_log import MetricsLog
    from pipelines.training.run_folder import RunFolder

    loop = TrainingLoop(task, training, 0, RunFolder(folder), accelerator)
    folder.mkdir(parents=True)
    loop.log, meter = MetricsLog(folder / "metrics.jsonl", 0), Silent(training.steps, "", "step")
    loop.train_mode()
    batches = loop.batches(StopRequest(accelerator))

    def run(count: int) -> None:
        for _ in range(count):
            loop.update(next(batches))
            loop.after_step(meter)
            meter.advance()

    return run


def seconds(run: Callable, count: int, device: torch.device) -> float:
    began = time.perf_counter()
    run(count)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / count


def compare(name: str, ours: Callable, bare: Callable, steps: int, epoch: int, device: torch.device) -> None:
    seconds(bare, TURN, device)
    first = seconds(ours, epoch, device)
    pairs = []
    for turn in range(steps // TURN):
        order = (ours, bare) if turn % 2 else (bare, ours)
        found = {run: seconds(run, TURN, device) for run in order}
        pairs.append((found[ours], found[bare]))
    ratio = statistics.median(a / b for a, b in pairs)
    best = min(a for a, _ in pairs) / min(b for _, b in pairs)
    middle = [1e3 * statistics.median(values) for values in zip(*pairs, strict=True)]
    print(
        f"{name:22} ours {middle[0]:8.2f} ms  bare {middle[1]:8.2f} ms  ratio {ratio:.3f}  best against best {best:.3f}"
        f"  first epoch {1e3 * first:.2f} ms",
        flush=True,
    )


def waiting_share(ours: Callable, device: torch.device) -> None:
    """The share of time in which the device has nothing to do."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        wall = seconds(ours, 2 * TURN, device) * 2 * TURN
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    print(f"{'':22} the device waits {max(0.0, 1 - busy / wall):.1%} of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--stages", nargs="+", default=["tokenizer", "prior"], choices=["tokenizer", "prior"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    from pipelines.base import distributed

    accelerator = distributed.start(arguments.precision)
    print(f"{accelerator.device}, {arguments.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SMALTI_CACHE"] = f"{folder}/cache"
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/datasets"
        if "tokenizer" in arguments.stages:
            measure_tokenizer(Path(folder), arguments, accelerator)
        if "prior" in arguments.stages:
            measure_prior(Path(folder), arguments, accelerator)


def training_of(recipe: str, arguments):
    """The recipe, and its training options for as many steps as are measured."""
    from pipelines.recipes.stages import load_recipe

    never = 10**9
    found = load_recipe(f"configs/fashion_mnist/{recipe}.yaml", [f"training.precision={arguments.precision}"])
    update = {"steps": never, "validate_every": never, "save_every": never, "compile": arguments.compile}
    return found, found.training.model_copy(update=update)


def measure_tokenizer(folder: Path, arguments, accelerator) -> None:
    from pipelines.data import DataConfig
    from pipelines.recipes.stages import TokenizerRecipe
    from pipelines.training.tokenizer_task import TokenizerTask
    from tokenizer import Autoencoder, AutoencoderPhase

    recipe, training = training_of("tokenizer", arguments)
    assert isinstance(recipe, TokenizerRecipe)
    images = smooth_images(IMAGES)
    sources = write_sources(folder, images)
    epoch = IMAGES // training.batch_size
    for name in ("memory", "parquet", "png"):
        memory = InMemory({"image": images}, training.batch_size)
        torch.manual_seed(0)
        bare_phase = AutoencoderPhase(Autoencoder(recipe.model), recipe.objective)
        bare = bare_steps(bare_phase, iter(memory), accelerator.device, training.optimizer.learning_rate)
        source = sources["png" if name == "png" else "parquet"]
        data = DataConfig.model_validate({"source": source, "preprocess": recipe.data.preprocess})
        torch.manual_seed(0)
        task = TokenizerTask(data, recipe.model, recipe.objective, training, seed=0)
        if name == "memory":
            task.batches = lambda start_step, rank, world, memory=memory: iter(memory)
        ours = our_steps(task, training, folder / f"run-{name}", accelerator)
        compare(f"tokenizer, {name}", ours, bare, arguments.steps, epoch + 2, accelerator.device)
        if accelerator.device.type == "cuda":
            waiting_share(ours, accelerator.device)


def measure_prior(folder: Path, arguments, accelerator) -> None:
    from pipelines.data import DataConfig
    from pipelines.encode import encode
    from pipelines.models.checkpoint import save_tokenizer
    from pipelines.recipes.stages import PriorRecipe, TokenizerRecipe
    from pipelines.training.conditioning import Conditioning
    from pipelines.training.prior_task import PriorTask
    from prior import PriorPhase, TokenPrior
    from tokenizer import Autoencoder

    recipe, training = training_of("prior", arguments)
    tokenizer, _ = training_of("tokenizer", arguments)
    assert isinstance(recipe, PriorRecipe) and isinstance(tokenizer, TokenizerRecipe)
    source = {"kind": "shapes", "train": IMAGES, "validation": 128, "test": 128}
    preprocess = {"size": 28, "mode": "L"}
    data = DataConfig.model_validate({"source": source, "preprocess": preprocess})
    torch.manual_seed(0)
    model = Autoencoder(tokenizer.model).train()
    model(smooth_images(512))  # places the codebook
    model.after_step(0)
    save_tokenizer(folder / "tokenizer", model.eval(), data.preprocess)
    encode(folder / "tokenizer", data, folder / "tokens", ["train", "validation"])
    torch.manual_seed(0)
    conditioning = Conditioning("label", recipe.condition_dropout)
    task = PriorTask(folder / "tokens", conditioning, recipe.transformer, training, seed=0)
    torch.manual_seed(0)
    bare_phase = PriorPhase(TokenPrior(task.phases["prior"].phase.model.config))
    memory = InMemory(task.tokens.batch(range(IMAGES)), training.batch_size)
    bare = bare_steps(bare_phase, iter(memory), accelerator.device, training.optimizer.learning_rate)
    ours = our_steps(task, training, folder / "run-prior", accelerator)
    compare("prior, token dataset", ours, bare, arguments.steps, TURN, accelerator.device)
    if accelerator.device.type == "cuda":
        waiting_share(ours, accelerator.device)


if __name__ == "__main__":
    main()
