"""Whether the latent of a model is used, over a window of images that several processes share."""

import math

import torch
from torch import Generator, Tensor

from tokenizer import Autoencoder, LevelUsage, OverallHealth, overall_health
from tokenizer.latent_health import LatentHealth, LatentMoments
from tokenizer.latents import LatentDistribution, Posterior
from tokenizer.standard_normal import StandardNormal

ADVICE = {
    OverallHealth: "See model.bottleneck.dead_code_threshold and a lower learning rate",
    LatentHealth: "See objective.kl_guard, and a weight of kl that is smaller or rises slowly",
}


class LatentUsage:
    """Counts the codes of a discrete model, or the moments of the posteriors of a continuous one."""

    def __init__(self, model: Autoencoder, device: torch.device):
        with torch.no_grad():
            # Of all levels: one below the top has a prior that depends on those above it.
            self.standard_normal_prior = isinstance(model.latent_distribution(), StandardNormal)
        self.codes = LevelUsage(model.code_grids, device) if model.code_grids else None
        sizes = [math.prod(shape) for shape in model.latent_shapes] if model.is_random else []
        self.moments = LatentMoments(*sizes, device=device) if sizes else None

    def add(
        self,
        codes: Tensor | None,
        posterior: Posterior | None,
        prior: LatentDistribution | None,
        streams: list[Generator],
    ) -> None:
        """A batch of images. `streams`: one for each, from which latents are drawn to know their variance."""
        if self.codes is not None and codes is not None:
            self.codes.update(codes)
        if self.moments is not None and posterior is not None and prior is not None:
            self.moments.observe(posterior, prior, streams)

    def report(self) -> OverallHealth | LatentHealth | None:
        """Of the windows of all processes together; None if the latent is neither discrete nor random."""
        if self.codes is not None:
            self.codes.all_reduce()
            return overall_health(self.codes.report())
        if self.moments is not None:
            self.moments.all_reduce()
            return self.moments.report(self.standard_normal_prior)
        return None


def figures_of(health: OverallHealth | LatentHealth | None) -> dict[str, float]:
    """What a validation reports; of codes on several levels also the figures of each, coarse to fine."""
    match health:
        case OverallHealth():
            figures = {"usage": health.usage, "perplexity": health.perplexity}
            for i, level in enumerate(health.levels if len(health.levels) > 1 else (), 1):
                figures |= {f"usage_{i}": level.usage, f"perplexity_{i}": level.perplexity}
            return figures
        case LatentHealth():
            return {"active_units": float(health.active_units)}
        case None:
            return {}


def collapse_in_words(health: OverallHealth | LatentHealth | None, was_collapsed: bool) -> str | None:
    """What to say when a latent has collapsed, with what to do about it, and when it is used again; else None."""
    if health is None or (health.verdict == "collapsed") == was_collapsed:
        return None
    what = "codebook" if isinstance(health, OverallHealth) else "latent"
    if was_collapsed:
        return f"the {what} is used again: {health.reason}"
    return f"the {what} has collapsed: {health.reason}. {ADVICE[type(health)]}"
