"""FactorVAE: a discriminator estimates the total correlation (Kim & Mnih 2018, arXiv 1802.05983)."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.latents import LatentDistribution
from tokenizer.regularizers.discriminator import DiscriminatorOptions


class FactorDiscriminator(DiscriminatorOptions):
    """It tells latents from those whose elements come from different images: from draws of Π q(z_j).

    The paper has six layers of 1000, Adam 1e-4 with betas 0.5 and 0.9, and a second batch for the discriminator; here
    it sees the latents of the same batch, as in disentanglement_lib.
    """

    term: ClassVar[str] = "total_correlation"
    kind: Literal["factor"] = "factor"

    def check_batch(self, images: int) -> None:
        """Raises ValueError for a single image: permuted over the rows, it stays what it is."""
        if images < 2:
            raise ValueError(f"found {images} image at once, expected at least 2")

    def loss(self, logits: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """KL(q(z) || Π q(z_j)) by the density ratio that the logits are (equation 3)."""
        return logits.mean()

    def others(self, z: Float[Tensor, "n elements"], prior: LatentDistribution) -> Float[Tensor, "n elements"]:
        """Every element of the latents, permuted over the rows for itself (algorithm 1)."""
        return z.gather(0, torch.rand_like(z).argsort(0))
