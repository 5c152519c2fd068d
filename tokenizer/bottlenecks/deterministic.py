"""No posterior: the latent of the plain autoencoder, and of the Wasserstein and adversarial ones."""

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tokenizer.bottlenecks.contract import BottleneckOutput, OneLevel
from tokenizer.options import Options


class DeterministicConfig(Options):
    """`dim` latent channels."""

    continuous: ClassVar[bool] = True
    random: ClassVar[bool] = False
    kind: Literal["deterministic"] = "deterministic"
    dim: int = Field(default=4, ge=1)


class Deterministic(OneLevel, nn.Module):
    """The latent is what the encoder gives. There is no KL: what shapes the latents is a term of the whole batch."""

    def __init__(self, config: DeterministicConfig):
        super().__init__()
        self.config = config
        self.dim = self.in_channels = config.dim

    def forward(self, h: Float[Tensor, "b c h w"], step: int = 0) -> BottleneckOutput:
        return BottleneckOutput(h.float())
