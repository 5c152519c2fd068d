"""The diagonal Gaussian posterior of the variational autoencoder."""

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from tokenizer.bottlenecks.contract import BottleneckOutput, OneLevel
from tokenizer.options import Options
from tokenizer.posteriors import DiagonalGaussian


class LogVarianceOptions(Options):
    """`log_variance_range`: where log-variances are kept. The default is that of the latent diffusion autoencoder, far
    outside what training visits.
    """

    log_variance_range: tuple[float, float] = Field(default=(-30.0, 20.0), examples=[(-6.0, 2.0)])

    @model_validator(mode="after")
    def _range_is_not_empty(self):
        low, high = self.log_variance_range
        if low >= high:
            raise ValueError(f"log_variance_range: found {low} to {high}, expected the lower bound first")
        return self


class GaussianOptions(LogVarianceOptions):
    """`dim` latent channels, each with a mean and a log-variance."""

    continuous: ClassVar[bool] = True
    random: ClassVar[bool] = True
    dim: int = Field(default=4, ge=1)


class GaussianConfig(GaussianOptions):
    """The elements of the latent are independent."""

    kind: Literal["gaussian"] = "gaussian"


class Gaussian(OneLevel, nn.Module):
    """h holds means, then log-variances. The autoencoder samples z and computes the KL."""

    def __init__(self, config: GaussianConfig):
        super().__init__()
        self.config = config
        self.dim, self.in_channels = config.dim, 2 * config.dim

    def forward(self, h: Float[Tensor, "b c h w"], step: int = 0) -> BottleneckOutput:
        # float32 whatever autocast says: exp overflows in half precision. The clamp keeps a wild first step finite.
        mean, log_variance = h.float().chunk(2, dim=1)
        return BottleneckOutput(
            mean, posterior=DiagonalGaussian(mean, log_variance.clamp(*self.config.log_variance_range))
        )
