"""The plain VAE against pythae 0.1.2 and against a bare loop: a training step, and the importance-weighted likelihood.

    python tests/benchmarks/vae.py --peer-python PYTHON [--rounds 10] [--draws 5000] [--images 20] [--device cpu|cuda]

PYTHON is the interpreter of an environment that has pythae, which needs another pydantic than smalti:
    python -m venv peer && peer/bin/pip install torch pythae && peer/bin/python …

The network is that of configs/vae_family/vae.yaml on 28x28 binary images held in memory, batch 100, Adam. The three
take turns, an epoch of 50 steps each, so that other work on the machine slows all; the ratio is the median over the
rounds.
pythae's step is that of its trainer (`train_step`), ours that of the training loop with the data path of the recipe.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGES, BATCH, LATENTS, WIDTH, PIXELS = 5000, 100, 40, 300, 784


def binary_images(count: int) -> Tensor:
    """Black and white blobs, (count, 1, 28, 28) of 0 and 1."""
    coarse = torch.rand(count, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, 28, mode="bicubic", align_corners=False) > 0.5).float()


def hidden(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, 2 * after), nn.GLU(1))


def networks() -> tuple[nn.Module, nn.Module]:
    encoder = nn.Sequential(nn.Flatten(), hidden(PIXELS, WIDTH), hidden(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * LATENTS))
    decoder = nn.Sequential(hidden(LATENTS, WIDTH), hidden(WIDTH, WIDTH), nn.Linear(WIDTH, PIXELS))
    return encoder, decoder


def seconds(run: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


# The peer, in its own interpreter: it reads a command a line and answers with seconds.


def pythae_vae():
    """pythae's VAE with the network of configs/vae_family/vae.yaml."""
    from pythae.models import VAE, VAEConfig  # pyright: ignore[reportMissingImports]
    from pythae.models.base.base_utils import ModelOutput  # pyright: ignore[reportMissingImports]
    from pythae.models.nn import BaseDecoder, BaseEncoder  # pyright: ignore[reportMissingImports]

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = networks()[0]

        def forward(self, x: Tensor):
            mean, log_variance = self.layers(x).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance.clamp(-6, 2))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = networks()[1]

        def forward(self, z: Tensor):
            return ModelOutput(reconstruction=self.layers(z).sigmoid().view(-1, 1, 28, 28))

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENTS, reconstruction_loss="bce")
    return VAE(config, Encoder(), Decoder())


def serve_pythae(device: str) -> None:
    from pythae.data.datasets import BaseDataset  # pyright: ignore[reportMissingImports]
    from pythae.trainers import BaseTrainer, BaseTrainerConfig  # pyright: ignore[reportMissingImports]

    model, images = pythae_vae(), binary_images(IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        options = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=5e-4,
            no_cuda=device == "cpu",
        )
        trainer = BaseTrainer(model, train_dataset=BaseDataset(images, torch.zeros(IMAGES)), training_config=options)
        trainer.prepare_training()
        answer({"threads": torch.get_num_threads(), "torch": torch.__version__})
        for line in sys.stdin:
            command, *numbers = line.split()
            if command == "train":
                answer(seconds(lambda: trainer.train_step(1), device))
            else:
                draws, count = map(int, numbers)
                batch = images[:count].to(device)
                with torch.no_grad():
                    answer(seconds(lambda: model.eval().get_nll(batch, draws, batch_size=100), device))  # noqa: B023


def answer(value: object) -> None:
    print(f"answer {json.dumps(value)}", flush=True)


class Peer:
    """pythae in its own process."""

    def __init__(self, python: str, device: str):
        command = [python, __file__, "--serve", "--device", device, "--peer-python", python]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        print("pythae:", self.read())

    def read(self):
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit("pythae has ended without an answer: run it with --serve to see why")

    def ask(self, command: str) -> float:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def bare_epoch(device: str) -> Callable[[], None]:
    """The loop that everything is held against: the network, the bound, Adam, images in memory."""
    encoder, decoder = (network.to(device) for network in networks())
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=5e-4)
    images = binary_images(IMAGES).to(device)

    def run() -> None:
        for rows in torch.randperm(IMAGES).split(BATCH):
            x = images[rows]
            mean, log_variance = encoder(2 * x - 1).chunk(2, dim=1)
            log_variance = log_variance.clamp(-6, 2)
            z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
            nll = F.binary_cross_entropy_with_logits(decoder(z), x.flatten(1), reduction="none").sum(1)
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
            optimizer.zero_grad()
            (nll + kl).mean().backward()
            optimizer.step()

    return run


def our_epoch(folder: Path) -> Callable[[], None]:
    """The training loop on the recipe's data path (pixels in memory, binarised anew): 50 steps at a time."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature
    from PIL import Image

    from pipelines.base import distributed
    from pipelines.base.progress import Silent
    from pipelines.base.signals import StopRequest
    from pipelines.recipes.stages import TokenizerRecipe, load_recipe
    from pipelines.training.loop import TrainingLoop
    from pipelines.training.metrics_log import MetricsLog
    from pipelines.training.run_folder import RunFolder
    from pipelines.training.tokenizer_task import TokenizerTask

    never = 10**9
    images = [Image.fromarray((255 * image[0]).byte().numpy()) for image in binary_images(IMAGES)]
    Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()})).to_parquet(
        folder / "train.parquet"
    )
    source = {"kind": "huggingface", "path": "parquet", "arguments": {"data_files": str(folder / "train.parquet")}}
    # pythae has no weight average and clips no gradients.
    plain = ["training.ema_decay=null", "training.optimizer.max_grad_norm=null"]
    splits = ["data.validation_fraction=0.02", "data.test_fraction=0"]
    recipe = load_recipe("configs/vae_family/vae.yaml", [*plain, *splits])
    assert isinstance(recipe, TokenizerRecipe)
    data = type(recipe.data).model_validate({**recipe.data.model_dump(), "source": source})
    training = recipe.training.model_copy(update={"steps": never, "validate_every": never, "save_every": never})
    task = TokenizerTask(data, recipe.model, recipe.objective, training, seed=0)
    accelerator = distributed.start("fp32")
    loop = TrainingLoop(task, training, 0, RunFolder(folder / "run"), accelerator)
    (folder / "run").mkdir()
    loop.log, meter = MetricsLog(folder / "run" / "metrics.jsonl", 0), Silent(never, "", "step")
    loop.train_mode()
    batches = loop.batches(StopRequest(accelerator))

    def run() -> None:
        for _ in range(IMAGES // BATCH):
            loop.update(next(batches))
            loop.after_step(meter)

    return run


def our_nll(draws: int, count: int, device: str) -> Callable[[], object]:
    from pipelines.recipes.stages import TokenizerRecipe, load_recipe
    from tokenizer import Autoencoder, likelihood_bounds

    recipe = load_recipe("configs/vae_family/vae.yaml")
    assert isinstance(recipe, TokenizerRecipe)
    model, images = Autoencoder(recipe.model).to(device).eval(), binary_images(count).to(device)
    streams = [torch.Generator().manual_seed(row) for row in range(count)]

    def run() -> None:
        for start in range(0, count, 4):
            likelihood_bounds(model, images[start : start + 4], draws, streams[start : start + 4])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--serve", action="store_true", help="be the peer (started by this script itself)")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve_pythae(arguments.device)
    if arguments.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    peer = Peer(arguments.peer_python, arguments.device)
    print(f"smalti: {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.device}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SMALTI_CACHE"], os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache", f"{folder}/datasets"
        compare_training(our_epoch(Path(folder)), peer, arguments)
        compare_likelihood(peer, arguments)
    peer.end()


def compare_training(ours: Callable, peer: Peer, arguments) -> None:
    bare, device = bare_epoch(arguments.device), arguments.device
    runs = {
        "ours": lambda: seconds(ours, device),
        "bare": lambda: seconds(bare, device),
        "pythae": lambda: peer.ask("train"),
    }
    for run in runs.values():
        run()  # the first epoch decodes images and warms up
    found = [{name: run() * 1e3 * BATCH / IMAGES for name, run in runs.items()} for _ in range(arguments.rounds)]
    for name in runs:
        median = statistics.median(each[name] for each in found)
        ratio = statistics.median(each[name] / each["ours"] for each in found)
        print(f"training step, {name:7} {median:7.2f} ms  {ratio:.2f} times ours", flush=True)


def compare_likelihood(peer: Peer, arguments) -> None:
    draws, count = arguments.draws, arguments.images
    ours, device = our_nll(draws, count, arguments.device), arguments.device
    seconds(ours, device)
    found = [(seconds(ours, device), peer.ask(f"nll {draws} {count}")) for _ in range(3)]
    ratio = statistics.median(theirs / mine for mine, theirs in found)
    rates = [count / statistics.median(values) for values in zip(*found, strict=True)]
    print(f"likelihood of {draws} draws: ours {rates[0]:.2f}, pythae {rates[1]:.2f} images a second: {ratio:.2f} times")


if __name__ == "__main__":
    main()
