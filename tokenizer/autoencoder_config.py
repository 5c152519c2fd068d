"""What a stage-one model is: the options of its parts, and which of them go together."""

from typing import Literal

from pydantic import Field, model_validator

from tokenizer.backbones import BackboneConfig
from tokenizer.bottlenecks import BottleneckConfig, check_grid
from tokenizer.conditions import ConditionConfig
from tokenizer.latent_priors import LatentPriorConfig, StandardNormalConfig
from tokenizer.likelihoods import LikelihoodConfig
from tokenizer.options import Options


class AutoencoderConfig(Options):
    """`image_size` is the side in pixels of square images with `channels` 1 (grey) or 3 (RGB).

    `latent_prior` is p(z) of a continuous bottleneck.
    """

    image_size: int = Field(gt=0)
    channels: Literal[1, 3]
    backbone: BackboneConfig
    condition: ConditionConfig | None = None
    bottleneck: BottleneckConfig
    latent_prior: LatentPriorConfig = StandardNormalConfig()
    likelihood: LikelihoodConfig

    @model_validator(mode="after")
    def _grid_is_whole(self):
        side = self.backbone.grid_side(self.image_size)
        check_grid(self.bottleneck, (side, side))
        return self

    @model_validator(mode="after")
    def _only_continuous_latents_take_labels(self):
        if self.condition is not None and not self.bottleneck.continuous:
            raise ValueError(
                f"condition: found {self.condition.kind!r}, but the codes of a {self.bottleneck.kind} bottleneck take "
                "no labels; expected no condition here, and `condition: label` in the recipe of the prior"
            )
        return self

    @model_validator(mode="after")
    def _a_conditional_prior_needs_a_condition(self):
        if self.latent_prior.conditional and self.condition is None:
            raise ValueError("latent_prior.conditional: found true without labels; expected a condition")
        return self

    @model_validator(mode="after")
    def _only_continuous_latents_have_a_prior(self):
        if self.latent_prior.kind != "standard_normal" and not self.bottleneck.continuous:
            raise ValueError(
                f"latent_prior: found {self.latent_prior.kind!r}, but the codes of a {self.bottleneck.kind} bottleneck "
                "have a transformer for a prior; expected no latent_prior"
            )
        if self.latent_prior.kind != "standard_normal" and not self.bottleneck.random:
            raise ValueError(
                f"latent_prior: found {self.latent_prior.kind!r}, which learns from the KL, and a "
                f"{self.bottleneck.kind} latent has none; expected standard_normal"
            )
        return self
