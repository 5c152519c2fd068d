"""The bottlenecks between encoder and decoder, behind the contract of `Bottleneck` and `Quantizer`.

A new one is a file, one line in the union, and a `case` in `build_bottleneck`; a new quantizer has both of them in
quantizers.py, so that it is also a level of a `multilevel` bottleneck.
"""

from typing import Annotated

from pydantic import Field

from tokenizer.bottlenecks.contract import Bottleneck, BottleneckOutput, ContinuousBottleneck, Quantizer
from tokenizer.bottlenecks.deterministic import Deterministic, DeterministicConfig
from tokenizer.bottlenecks.flow_gaussian import FlowGaussianBottleneck, FlowGaussianConfig
from tokenizer.bottlenecks.full_gaussian import FullGaussianBottleneck, FullGaussianConfig
from tokenizer.bottlenecks.gaussian import Gaussian, GaussianConfig
from tokenizer.bottlenecks.ladder import Ladder, LadderConfig
from tokenizer.bottlenecks.multilevel import Multilevel, MultilevelConfig
from tokenizer.bottlenecks.quantizers import QuantizerConfig, build_quantizer

BottleneckConfig = Annotated[
    QuantizerConfig
    | MultilevelConfig
    | GaussianConfig
    | FullGaussianConfig
    | FlowGaussianConfig
    | LadderConfig
    | DeterministicConfig,
    Field(discriminator="kind"),
]  # fmt: skip

__all__ = [
    "Bottleneck",
    "BottleneckConfig",
    "BottleneckOutput",
    "ContinuousBottleneck",
    "Quantizer",
    "build_bottleneck",
    "check_grid",
]


def check_grid(config: BottleneckConfig, grid: tuple[int, int]) -> None:
    """Raises ValueError when a latent grid of this many rows and columns does not suit the bottleneck."""
    if isinstance(config, FullGaussianConfig | MultilevelConfig):
        config.check_grid(grid)


def build_bottleneck(config: BottleneckConfig, grid: tuple[int, int]) -> Bottleneck:
    """The module that `config` describes, for a latent grid of this many rows and columns."""
    match config:
        case MultilevelConfig():
            return Multilevel(config, grid)
        case GaussianConfig():
            return Gaussian(config)
        case FullGaussianConfig():
            return FullGaussianBottleneck(config, grid)
        case FlowGaussianConfig():
            return FlowGaussianBottleneck(config, grid)
        case LadderConfig():
            return Ladder(config, grid)
        case DeterministicConfig():
            return Deterministic(config)
        case _:
            return build_quantizer(config)
