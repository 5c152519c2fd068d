"""The adversarial autoencoder: latents that a discriminator cannot tell from draws of the prior.

Makhzani et al. 2016, arXiv 1511.05644; as WAE-GAN in Tolstikhin et al. 2018, arXiv 1711.01558, algorithm 1.
"""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tokenizer.latents import LatentDistribution
from tokenizer.regularizers.discriminator import DiscriminatorOptions


class AdversarialDiscriminator(DiscriminatorOptions):
    """It tells latents from draws of the latent prior. The paper has two layers of 1000."""

    term: ClassVar[str] = "adversarial"
    kind: Literal["adversarial"] = "adversarial"

    def loss(self, logits: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """-ln of the probability of being a draw of the prior: the loss of a generator that does not saturate
        (Goodfellow et al. 2014, arXiv 1406.2661, section 3)."""
        return F.softplus(logits).mean()

    def others(self, z: Float[Tensor, "n elements"], prior: LatentDistribution) -> Float[Tensor, "n elements"]:
        """As many draws of the latent prior."""
        return prior.sample(len(z)).flatten(1).to(z)
