"""A network that tells the latents of images from others, and the phase that trains it."""

from itertools import pairwise
from typing import Annotated, Any

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tokenizer.options import Options

LATENTS, OTHERS = "latents", "other_latents"
"""What the autoencoder's phase adds to a batch: latents of its images, and as many to tell them from, (n, elements)."""


class DiscriminatorOptions(Options):
    """`widths` of the hidden layers. The default is small enough for a CPU; the papers have wider ones."""

    widths: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(256, 256, 256), min_length=1, max_length=1000, examples=[(8, 6)]
    )

    def check_batch(self, images: int) -> None:
        """Raises ValueError where the latents of so many images cannot be told from the others."""


class LatentDiscriminator(nn.Module):
    """Dense layers with leaky ReLU (slope 0.2): (n, elements) -> (n,).

    The output is a logit: trained to the optimum it is ln q(z) / r(z), where latents of images have the density q and
    those to tell them from the density r.
    """

    def __init__(self, options: DiscriminatorOptions, elements: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((elements, *options.widths)):
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(options.widths[-1], 1))

    def forward(self, z: Float[Tensor, "n elements"]) -> Float[Tensor, " n"]:
        return self.layers(z)[:, 0].float()

    def frozen(self, z: Float[Tensor, "n elements"]) -> Float[Tensor, " n"]:
        """The same logits, whose gradient reaches z and no weight of this network."""
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return functional_call(self, weights, (z,))


class LatentDiscriminatorPhase(nn.Module):
    """One step of training the discriminator, after that of the autoencoder and on the latents that it left in the
    batch.
    """

    def __init__(self, model: LatentDiscriminator):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Any], step: int) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The binary cross-entropy in nats, ln 2 by chance, and the metric "accuracy"."""
        latents, others = self.model(batch[LATENTS]), self.model(batch[OTHERS])
        loss = (F.softplus(-latents).mean() + F.softplus(others).mean()) / 2
        accuracy = ((latents > 0).float().mean() + (others < 0).float().mean()) / 2
        return loss, {"loss": loss.detach(), "accuracy": accuracy}

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the discriminator."""
        return dict(self.model.named_parameters())

    def after_step(self, step: int) -> None:
        pass
