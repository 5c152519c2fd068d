"""Whether the latent of a model is used, over a window of images that several processes share."""

import math

import torch
from torch import Generator, Tensor

from tokenizer import Autoencoder, LevelUsage, OverallHealth, overall_health
from tokenizer.latent_health import LatentHealth, LatentMoments
from tokenizer.latents import LatentDistribution, Posterior

ADVICE_ON_CODES = "See model.bottleneck.dead_code_threshold and a lower learning rate"
ADVICE_ON_POSTERIORS = "See objective.kl_guard, and a weight of kl that is smaller or rises slowly"
ADVICE_ON_LATENTS = "See a lower learning rate, and smaller weights of what shapes the latent"


class LatentUsage:
    """Counts the codes of a discrete model, or the moments of the posteriors of a continuous one; of one whose latent
    is not random, those of the latents themselves.
    """

    def __init__(self, model: Autoencoder, device: torch.device):
        self.standard_normal_prior = model.config.latent_prior.kind == "standard_normal"  # of the top level
        self.codes = LevelUsage(model.code_grids, device) if model.code_grids else None
        sizes = [math.prod(shape) for shape in model.latent_shapes] if model.num_codes is None else []
        self.moments = LatentMoments(*sizes, device=device) if sizes else None

    def add(
        self,
        z: Tensor,
        codes: Tensor | None,
        posterior: Posterior | None,
        prior: LatentDistribution | None,
        streams: list[Generator],
    ) -> None:
        """A batch of images. z: the latents that it was encoded to. `streams`: one for each image, from which latents
        are drawn to know their variance.
        """
        if self.codes is not None and codes is not None:
            self.codes.update(codes)
        if self.moments is None:
            return
        if posterior is not None and prior is not None:
            self.moments.observe(posterior, prior, streams)
        else:
            self.moments.update(z.flatten(1), torch.zeros_like(z.flatten(1)))

    def report(self) -> OverallHealth | LatentHealth:
        """Of the windows of all processes together."""
        if self.codes is not None:
            self.codes.all_reduce()
            return overall_health(self.codes.report())
        assert self.moments is not None  # a latent is discrete or continuous
        self.moments.all_reduce()
        return self.moments.report(self.standard_normal_prior)


def figures_of(health: OverallHealth | LatentHealth) -> dict[str, float]:
    """What a validation reports; of codes on several levels also the figures of each, coarse to fine."""
    match health:
        case OverallHealth():
            figures = {"usage": health.usage, "perplexity": health.perplexity}
            for i, level in enumerate(health.levels if len(health.levels) > 1 else (), 1):
                figures |= {f"usage_{i}": level.usage, f"perplexity_{i}": level.perplexity}
            return figures
        case LatentHealth():
            return {"active_units": float(health.active_units)}


def collapse_in_words(health: OverallHealth | LatentHealth, was_collapsed: bool) -> str | None:
    """What to say when a latent has collapsed, with what to do about it, and when it is used again; else None."""
    if (health.verdict == "collapsed") == was_collapsed:
        return None
    if isinstance(health, OverallHealth):
        what, advice = "codebook", ADVICE_ON_CODES
    else:  # a latent that is not random has no KL
        what, advice = "latent", ADVICE_ON_LATENTS if health.levels[0].kl is None else ADVICE_ON_POSTERIORS
    if was_collapsed:
        return f"the {what} is used again: {health.reason}"
    return f"the {what} has collapsed: {health.reason}. {advice}"
