"""A learned mixture of Gaussians as the latent prior ("mixture of Gaussians prior", arXiv 1705.07120, section 4)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tokenizer.latent_priors.gaussian_mixture import GaussianMixture
from tokenizer.latents import PosteriorOf
from tokenizer.options import Options


class MixtureConfig(Options):
    """`components` Gaussians with independent elements."""

    conditional: ClassVar[bool] = False
    kind: Literal["mixture"] = "mixture"
    components: int = Field(default=100, ge=1, examples=[3])


class MixturePrior(nn.Module):
    """p(z) with learned weights, means and variances, over latents of shape (d, h, w).

    It starts with equal weights, unit variances, and means drawn from N(0, 1).
    """

    def __init__(self, config: MixtureConfig, shape: tuple[int, int, int]):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(config.components))
        self.mean = nn.Parameter(torch.randn(config.components, *shape))
        self.log_variance = nn.Parameter(torch.zeros(config.components, *shape))

    def distribution(self, posterior_of: PosteriorOf, condition: Tensor | None = None) -> GaussianMixture:
        return GaussianMixture(self.logit.float().log_softmax(0), self.mean.float(), self.log_variance.float())
