"""The diagonal Gaussian posterior of the variational autoencoder."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor, nn

from tokenizer.bottlenecks.result import Bottlenecked
from tokenizer.divergences import gaussian_kl


class GaussianConfig(BaseModel):
    """`dim` latent channels, each with a mean and a log-variance."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["gaussian"] = "gaussian"
    dim: int = Field(default=4, ge=1)


@dataclass
class DiagonalGaussian:
    """Independent normals, one for each element."""

    mean: Float[Tensor, "b d h w"]
    log_variance: Float[Tensor, "b d h w"]

    def sample(self, generator: Generator | None = None) -> Float[Tensor, "b d h w"]:
        """A draw with its gradient (the reparameterisation, arXiv 1312.6114, equation 4)."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + (0.5 * self.log_variance).exp() * noise


class Gaussian(nn.Module):
    """h holds means, then log-variances; z is a draw in training and the mean in evaluation.

    The term "kl" is KL(q(z|x) || N(0, 1)) in nats per image.
    """

    def __init__(self, config: GaussianConfig):
        super().__init__()
        self.dim, self.features_in = config.dim, 2 * config.dim
        self.num_codes, self.depth, self.embedding = None, 0, None

    def forward(self, h: Float[Tensor, "b c h w"], step: int = 0) -> Bottlenecked:
        # float32 whatever autocast says: exp overflows in half precision. The clamp keeps a wild first step finite;
        # the bounds are those of the latent diffusion autoencoder, far outside what training visits.
        mean, log_variance = h.float().chunk(2, dim=1)
        posterior = DiagonalGaussian(mean, log_variance.clamp(-30, 20))
        kl = gaussian_kl(posterior.mean, posterior.log_variance).sum(dim=(1, 2, 3))
        z = posterior.sample() if self.training else posterior.mean
        return Bottlenecked(z, terms={"kl": kl}, posterior=posterior)

    def sample_prior(self, n: int, h: int, w: int, generator: Generator | None = None) -> Float[Tensor, "n d h w"]:
        """n draws from p(z) = N(0, 1), on the generator's device (the CPU without one)."""
        device = "cpu" if generator is None else generator.device
        return torch.randn(n, self.dim, h, w, generator=generator, device=device)
