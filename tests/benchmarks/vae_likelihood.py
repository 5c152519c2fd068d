"""The likelihood that pythae 0.1.2 reaches with the network, the images, the rate and the epochs of a recipe of ours.

    smalti train configs/vae_family/vae.yaml && smalti evaluate runs/vae_family/vae -o runs/vae_family/vae_evaluated
    python tests/benchmarks/vae_likelihood.py --peer-python PYTHON --evaluated runs/vae_family/vae_evaluated

PYTHON is as for vae.py. pythae's trainer gets the recipe's number of epochs and learning rate, Adam, and torch's cosine
schedule, an epoch at a time. Only ours has KL warm-up, a warm-up of the rate over 200 steps, clipped gradients,
averaged weights, and pixels in [-1, 1] at the encoder. pythae's data set draws the training images anew, since it does
not binarise. Its `get_nll` sees the first test images, binarised as ours were, with as many draws as ours had.
"""

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.vae import BATCH, pythae_vae


class DrawnAnew(torch.utils.data.Dataset):
    """Grey images (n, 1, 28, 28), uint8, that are black and white when they are seen."""

    def __init__(self, grey: Tensor):
        self.grey = grey

    def __len__(self) -> int:
        return len(self.grey)

    def __getitem__(self, index: int):
        from pythae.data.datasets import DatasetOutput  # pyright: ignore[reportMissingImports]

        return DatasetOutput(data=torch.bernoulli(self.grey[index] / 255), labels=torch.zeros(()))


def train_pythae(folder: Path, epochs: int, rate: float, draws: int) -> None:
    """In pythae's interpreter: train on `images.pt`, and leave the bounds of each test image in `bounds.pt`."""
    from pythae.trainers import BaseTrainer, BaseTrainerConfig  # pyright: ignore[reportMissingImports]

    images = torch.load(folder / "images.pt")
    model, train = pythae_vae(), DrawnAnew(images["train"])
    options = BaseTrainerConfig(
        output_dir=str(folder),
        num_epochs=epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=rate,
        scheduler_cls="CosineAnnealingLR",
        scheduler_params={"T_max": epochs},
        no_cuda=True,
    )
    trainer = BaseTrainer(model, train_dataset=train, training_config=options)  # pyright: ignore[reportArgumentType]
    trainer.prepare_training()
    for epoch in range(1, epochs + 1):
        loss = trainer.train_step(epoch)
        trainer._schedulers_step(loss)
        if epoch % 10 == 0 or epoch == epochs:
            print(f"pythae: epoch {epoch}, training -ELBO {float(loss):.2f} nats", flush=True)
    model.eval()
    test = images["test"].float() / 255
    nll = []
    with torch.no_grad():
        for image in test:
            nll.append(-float(model.get_nll(image[None], draws, batch_size=BATCH)))
    elbos = torch.stack([negative_elbo(model, test) for _ in range(100)]).mean(0)
    torch.save({"nll": torch.tensor(nll), "negative_elbo": elbos}, folder / "bounds.pt")


@torch.no_grad()
def negative_elbo(model, images: Tensor) -> Tensor:
    """Of each image, from one latent."""
    encoded = model.encoder(images)
    mean, log_variance = encoded.embedding, encoded.log_covariance
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    pixels = model.decoder(z).reconstruction
    nll = torch.nn.functional.binary_cross_entropy(pixels, images, reduction="none").flatten(1).sum(1)
    return nll + 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def images_of(recipe_file: str, count: int) -> tuple[dict[str, Tensor], int, float]:
    """Grey training images, binarised test images, epochs and learning rate of a recipe."""
    from pipelines.data import open_images
    from pipelines.recipes.stages import TokenizerRecipe, load_recipe

    recipe = load_recipe(recipe_file)
    assert isinstance(recipe, TokenizerRecipe)
    train = open_images(recipe.data.model_copy(update={"binarize": None}), "train")
    test = open_images(recipe.data, "test")
    images = {
        "train": train.read_pixels(range(len(train))).image.clone(),
        "test": test.read_pixels(range(count)).image.clone(),
    }
    epochs = recipe.training.steps * recipe.training.batch_size // len(train)
    return images, epochs, recipe.training.optimizer.learning_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--evaluated", help="what `smalti evaluate` wrote of the run of the recipe")
    parser.add_argument("--recipe", default="configs/vae_family/vae.yaml")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--train", nargs=4, help="be the peer (started by this script itself)")
    arguments = parser.parse_args()
    if arguments.train:
        folder, epochs, rate, draws = arguments.train
        return train_pythae(Path(folder), int(epochs), float(rate), int(draws))
    report = json.loads((Path(arguments.evaluated) / "report.json").read_text())
    if report["split"] != "test" or report["images"] < arguments.images:
        raise SystemExit(f"{arguments.evaluated}: holds {report['images']:,} images of {report['split']}")
    with open(Path(arguments.evaluated) / "images.csv", newline="") as file:
        ours = list(csv.DictReader(file))[: arguments.images]
    with tempfile.TemporaryDirectory() as folder:
        images, epochs, rate = images_of(arguments.recipe, arguments.images)
        torch.save(images, Path(folder) / "images.pt")
        command = [arguments.peer_python, __file__, "--train", folder, str(epochs), str(rate), str(report["draws"])]
        subprocess.run(command, check=True, env=os.environ | {"TQDM_DISABLE": "1"})
        theirs = torch.load(Path(folder) / "bounds.pt")
    print(f"the first {len(ours):,} test images, nats an image, {report['draws']:,} draws")
    for name in ("negative_elbo", "nll"):
        mine, peers = [float(row[name]) for row in ours], theirs[name].tolist()
        difference = [other - one for one, other in zip(mine, peers, strict=True)]
        error = statistics.stdev(difference) / math.sqrt(len(difference))
        print(
            f"{name:14} ours {statistics.mean(mine):.2f}, pythae {statistics.mean(peers):.2f}; "
            f"pythae more by {statistics.mean(difference):.2f} ± {error:.2f}"
        )


if __name__ == "__main__":
    main()
