"""p(z) of the continuous family: what the posterior is compared with, and where new latents come from.

A new one is a file, one line in the union, and a `case` in `build_latent_prior`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tokenizer.latent_priors.flow import FlowConfig, FlowPrior
from tokenizer.latent_priors.mixture import MixtureConfig, MixturePrior
from tokenizer.latent_priors.vamp import VampConfig, VampPrior
from tokenizer.latents import LatentPrior
from tokenizer.options import Options
from tokenizer.standard_normal import StandardNormal


class StandardNormalConfig(Options):
    """No options."""

    conditional: ClassVar[bool] = False
    kind: Literal["standard_normal"] = "standard_normal"


LatentPriorConfig = Annotated[
    StandardNormalConfig
    | MixtureConfig
    | FlowConfig
    | VampConfig,
    Field(discriminator="kind"),
]  # fmt: skip

__all__ = ["LatentPriorConfig", "StandardNormalConfig", "build_latent_prior"]


def build_latent_prior(
    config: LatentPriorConfig,
    shape: tuple[int, int, int],
    image_shape: tuple[int, int, int],
    condition_dim: int = 0,
) -> LatentPrior:
    """The prior that `config` describes, over latents of shape (d, h, w) of images (c, H, W).

    `condition_dim`: numbers in the embedding of a label, for a prior that is `conditional`.
    """
    match config:
        case StandardNormalConfig():
            return StandardNormal(shape)
        case MixtureConfig():
            return MixturePrior(config, shape)
        case FlowConfig():
            return FlowPrior(config, shape, condition_dim)
        case VampConfig():
            return VampPrior(config, image_shape)
