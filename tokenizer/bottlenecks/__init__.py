"""The bottlenecks between encoder and decoder, behind one contract.

Each has `features_in` (channels it wants of the encoder), `dim` (channels of z), `num_codes` (None if continuous),
`depth` (codes per position, 0 if continuous), `embedding` (learned codebooks (q, K, d), or None) and
`forward(h, step) -> Bottlenecked`. A discrete one adds `codes_to_latents(codes)`.
"""

from typing import Annotated

from pydantic import Field

from tokenizer.bottlenecks.fsq import FSQ, FSQConfig
from tokenizer.bottlenecks.gaussian import Gaussian, GaussianConfig
from tokenizer.bottlenecks.result import Bottlenecked
from tokenizer.bottlenecks.vq import VQ, VQConfig

BottleneckConfig = Annotated[VQConfig | FSQConfig | GaussianConfig, Field(discriminator="kind")]

__all__ = ["BottleneckConfig", "Bottlenecked", "FSQConfig", "GaussianConfig", "VQConfig", "build_bottleneck"]


def build_bottleneck(config: VQConfig | FSQConfig | GaussianConfig) -> VQ | FSQ | Gaussian:
    """The module that `config` describes."""
    match config:
        case VQConfig():
            return VQ(config)
        case FSQConfig():
            return FSQ(config)
        case GaussianConfig():
            return Gaussian(config)
