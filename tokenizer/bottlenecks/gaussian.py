"""The diagonal Gaussian posterior of the variational autoencoder."""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tokenizer.bottlenecks.contract import BottleneckOutput
from tokenizer.options import Options
from tokenizer.posteriors import DiagonalGaussian


class GaussianConfig(Options):
    """`dim` latent channels, each with a mean and a log-variance."""

    kind: Literal["gaussian"] = "gaussian"
    dim: int = Field(default=4, ge=1)


class Gaussian(nn.Module):
    """h holds means, then log-variances. The autoencoder samples z and computes the KL."""

    def __init__(self, config: GaussianConfig):
        super().__init__()
        self.config = config
        self.dim, self.in_channels = config.dim, 2 * config.dim
        self.num_codes, self.num_quantizers, self.embedding = None, 0, None

    def forward(self, h: Float[Tensor, "b c h w"], step: int = 0) -> BottleneckOutput:
        # float32 whatever autocast says: exp overflows in half precision. The clamp keeps a wild first step finite;
        # the bounds are those of the latent diffusion autoencoder, far outside what training visits.
        mean, log_variance = h.float().chunk(2, dim=1)
        return BottleneckOutput(mean, posterior=DiagonalGaussian(mean, log_variance.clamp(-30, 20)))

    def encode_state(self) -> dict[str, Tensor]:
        return {}

    def after_step(self, step: int) -> None:
        pass
