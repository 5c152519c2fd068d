"""What a recipe of a tokenizer says that is possible and rarely meant: one line each, told before the first step."""

import math
from collections.abc import Iterator

from pipelines.recipes.stages import TokenizerRecipe
from tokenizer import Autoencoder
from tokenizer.kl_guards import FreeBits
from tokenizer.schedules import Cosine, Linear

LARGEST_BETA, ITS_PIXELS = 16, 64 * 64  # of the study of Locatello et al. 2019, arXiv 1811.12359, table 1
SUSPICIOUS_MEAN = 4  # beta times the numbers of an image; one loss is a sum over pixels, the other looks like a mean
MOST_FREE_BITS = 0.1  # bits a number of the image; good models of 28 x 28 black and white pixels use about 0.06


def advice(recipe: TokenizerRecipe, model: Autoencoder, pixels_are_known: bool = True) -> list[str]:
    """Lines for a person. `model` is the one that the recipe describes. `pixels_are_known`: whether the images have
    only pixels of the values that the likelihood gives a probability.
    """
    found = [*_schedules(recipe), *_scales(recipe, model), *_widths(recipe, model)]
    if not pixels_are_known:
        found.append(
            f"model.likelihood: {model.config.likelihood.kind} is a probability of {model.likelihood.bins} values, but "
            "the images have others. Its figures are then no likelihood, and compare with nothing that is "
            "(data.binarize makes images black and white)"
        )
    return found


def _schedules(recipe: TokenizerRecipe) -> Iterator[str]:
    """Weights that are still on their way when training ends."""
    last = recipe.training.steps
    for name, schedule in recipe.objective.weights.items():
        if isinstance(schedule, Linear | Cosine) and schedule.begin + schedule.steps > last:
            yield (
                f"objective.weights.{name}: changes until step {schedule.begin + schedule.steps:,}, but training "
                f"ends at step {last:,} with {schedule.at(last):.3g} in place of {schedule.end:g}"
            )


def _scales(recipe: TokenizerRecipe, model: Autoencoder) -> Iterator[str]:
    """Weights of the reconstruction and of the KL that are far apart."""
    weights, steps = recipe.objective.weights, recipe.training.steps
    if not {"nll", "kl"} <= weights.keys():
        return
    some = [*range(0, steps, max(1, steps // 1000)), steps - 1]
    nll, kl = (max(weights[name].at(step) for step in some) for name in ("nll", "kl"))
    if not nll or not kl:
        return
    beta, dims = kl / nll, model.dims
    largest = LARGEST_BETA * max(1, dims / ITS_PIXELS)
    if beta * dims <= SUSPICIOUS_MEAN:
        yield (
            f"objective.weights: kl / nll is {beta:.2g}, about 1 over the {dims:,} numbers of an image. Both terms are "
            "in nats per image, so {nll: 1, kl: 1} is the negative ELBO; so small a weight leaves an autoencoder whose "
            "latent prior makes no images"
        )
    elif beta > largest:
        guarded = recipe.objective.kl_guard is not None and recipe.objective.kl_guard.kind == "capacity"
        if not guarded:  # where it is the gamma of |KL - C|, which is large
            yield (
                f"objective.weights: kl / nll is {beta:.3g}; for images of {dims:,} numbers beta is rarely above "
                f"{largest:.3g}. Terms are sums over an image, not means: the latent will probably collapse"
            )


def _widths(recipe: TokenizerRecipe, model: Autoencoder) -> Iterator[str]:
    """A latent, or its allowance of KL, that is larger than the image."""
    if model.num_codes is not None:
        return
    guard, out = recipe.objective.kl_guard, model.probe()
    if out.z.numel() >= model.dims:
        yield (
            f"model.bottleneck: the latent has {out.z.numel():,} numbers, the image {model.dims:,}: nothing has to be "
            "left out. Expected fewer channels or a coarser grid"
        )
    if isinstance(guard, FreeBits) and out.kl_elements is not None:
        groups = guard.count(out.kl_elements)
        bits = groups * guard.nats / math.log(2)
        if bits > MOST_FREE_BITS * model.dims:
            yield (
                f"objective.kl_guard: {guard.nats:g} nats for each of {groups:,} are {bits:,.0f} free bits. For an "
                f"image of {model.dims:,} numbers a good model uses fewer: the KL would never count"
            )
