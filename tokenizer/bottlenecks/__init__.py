"""The bottlenecks between encoder and decoder, behind the contract of `Bottleneck` and `Quantizer`.

A new one is a file, one line in the union, and a `case` in `build_bottleneck`.
"""

from typing import Annotated

from pydantic import Field

from tokenizer.bottlenecks.contract import Bottleneck, BottleneckOutput, Quantizer
from tokenizer.bottlenecks.deterministic import Deterministic, DeterministicConfig
from tokenizer.bottlenecks.fsq import FSQ, FSQConfig
from tokenizer.bottlenecks.gaussian import Gaussian, GaussianConfig
from tokenizer.bottlenecks.lfq import LFQ, LFQConfig
from tokenizer.bottlenecks.vq import VQ, VQConfig

BottleneckConfig = Annotated[
    VQConfig
    | FSQConfig
    | LFQConfig
    | GaussianConfig
    | DeterministicConfig,
    Field(discriminator="kind"),
]  # fmt: skip

__all__ = ["Bottleneck", "BottleneckConfig", "BottleneckOutput", "Quantizer", "build_bottleneck"]


def build_bottleneck(config: BottleneckConfig) -> Bottleneck:
    """The module that `config` describes."""
    match config:
        case VQConfig():
            return VQ(config)
        case FSQConfig():
            return FSQ(config)
        case LFQConfig():
            return LFQ(config)
        case GaussianConfig():
            return Gaussian(config)
        case DeterministicConfig():
            return Deterministic(config)
