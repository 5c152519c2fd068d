"""p(z) of the continuous family: what the posterior is compared with, and where new latents come from.

A new one is a file, one line in the union, and a `case` in `build_latent_prior`.
"""

from tokenizer.latent_priors.standard_normal import StandardNormal, StandardNormalConfig
from tokenizer.latents import LatentPrior

LatentPriorConfig = StandardNormalConfig

__all__ = ["LatentPriorConfig", "StandardNormalConfig", "build_latent_prior"]


def build_latent_prior(config: LatentPriorConfig, shape: tuple[int, int, int]) -> LatentPrior:
    """The prior that `config` describes, over latents of shape (d, h, w)."""
    match config:
        case StandardNormalConfig():
            return StandardNormal(shape)
