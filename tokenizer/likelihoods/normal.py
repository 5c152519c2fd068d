"""The normal likelihood: squared errors."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.likelihoods.scale import LocationScale, Scale
from tokenizer.noise import Generators, standard_normal
from tokenizer.options import Options


class NormalConfig(Options):
    """`scale`: standard deviation of pixel noise, in units of the [0, 1] range; "learned" fits one for all pixels,
    "predicted" lets the decoder give one for each."""

    kind: Literal["normal"] = "normal"
    scale: Scale = 0.1


class Normal(LocationScale):
    """x ~ N(mean, scale²) in every channel of every pixel.

    A learned scale is the sigma-VAE (Rybkin et al. 2021, arXiv 2006.13202): the noise that fits the reconstruction
    error takes the place of a hand-tuned beta.
    """

    LOG_CONSTANT = math.log(2 * math.pi) / 2

    def __init__(self, config: NormalConfig, channels: int):
        super().__init__(config.scale, channels)
        self.config = config

    def energy(self, deviation: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return deviation.square() / 2

    def standard_noise(self, shape: torch.Size, generator: Generators, device: torch.device) -> Float[Tensor, "..."]:
        return standard_normal(shape, generator, device)
