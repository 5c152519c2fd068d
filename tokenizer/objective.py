"""The objective: one visible weighted sum of named terms, and the phase that trains an autoencoder with it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from tokenizer.autoencoder import Autoencoder
from tokenizer.options import Options
from tokenizer.schedules import Schedule


class ObjectiveConfig(Options):
    """A weight of at least 0, constant or scheduled, for every term of the model, by the term's name.

    Terms are in nats per image (squared errors: sums per image), so `{nll: 1, kl: 1}` is the negative ELBO and a weight
    means the same whatever the size of images and batch.

    draws: latents sampled for each image of a continuous model. With more than one the objective is the
        importance-weighted bound (IWAE, arXiv 1509.00519).
    """

    weights: dict[str, Schedule] = Field(min_length=1)
    draws: int = Field(default=1, ge=1)

    @field_validator("weights")
    @classmethod
    def _not_negative(cls, weights: dict[str, Any]) -> dict[str, Any]:
        for name, schedule in weights.items():
            if schedule.lowest < 0:
                raise ValueError(f"the weight of {name} falls to {schedule.lowest}, expected at least 0")
        if not any(schedule.lowest > 0 for schedule in weights.values()):
            raise ValueError("every weight is 0 at some step, expected one that never is: there is nothing to learn")
        return weights


def check_weights(weights: Mapping[str, Any], terms: set[str]) -> None:
    """Raises ValueError when a weight names no term or a term has no weight."""
    if set(weights) != terms:
        raise ValueError(
            f"objective weights are for {sorted(weights)}, the model's terms are {sorted(terms)}: "
            "every term needs a weight (0 switches it off), and every weight a term"
        )


def image_loss(terms: Mapping[str, Float[Tensor, "b _"]], weights: Mapping[str, Any], step: int) -> Float[Tensor, " b"]:
    """Σ weight(step) · term of each image; of several draws their `importance_bound`.

    A term of weight 0 is left out, so it may be infinite. A term of one column counts for every draw.
    """
    per_draw = torch.zeros_like(next(iter(terms.values())))
    for name, term in terms.items():
        if weight := weights[name].at(step):
            per_draw = per_draw + weight * term
    return importance_bound(per_draw)


def importance_bound(per_draw: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """-ln mean exp(-x) over the draws (IWAE, arXiv 1509.00519, equation 8); x itself of a single draw."""
    draws = per_draw.shape[1]
    return per_draw[:, 0] if draws == 1 else math.log(draws) - torch.logsumexp(-per_draw, dim=1)


def combine(
    terms: Mapping[str, Float[Tensor, "b _"]],
    batch_terms: Mapping[str, Float[Tensor, ""]],
    weights: Mapping[str, Any],
    step: int,
    dims: int,
) -> Float[Tensor, ""]:
    """The loss: the batch's mean of `image_loss`, plus the weighted batch terms, divided once by `dims` = c · H · W.

    The division sets the loss's scale, never the balance of its terms. Raises ValueError as `check_weights` does.
    """
    check_weights(weights, {*terms, *batch_terms})
    loss = image_loss(terms, weights, step).mean()
    for name, term in batch_terms.items():
        if weight := weights[name].at(step):
            loss = loss + weight * term
    return loss / dims


class AutoencoderPhase(nn.Module):
    """One step of training an autoencoder, as the training loop sees it.

    The model belongs to the caller and stays reachable as `.model`: another phase may hold it too and see the same
    batch. Raises ValueError at construction when weights and terms do not match, or when several draws are asked of a
    latent that is not random.
    """

    def __init__(self, model: Autoencoder, objective: ObjectiveConfig):
        super().__init__()
        check_weights(objective.weights, model.term_names())
        if objective.draws > 1 and model.latent_prior is None:
            kind = model.config.bottleneck.kind
            raise ValueError(f"draws: found {objective.draws}, expected 1: the latent of a {kind} model is not random")
        self.model = model
        self.objective = objective

    def forward(self, batch: Mapping[str, Any], step: int) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """batch["image"]: uint8 (b, c, H, W) or float in [0, 1]; batch.get("label") is the condition.

        Metrics are detached scalars: the mean over the batch of each unweighted term, "loss" per dimension,
        "perplexity_batch" of a discrete model (this batch's codes only: a small batch bounds it), and the bottleneck's
        own. Figures of evaluation come from `evaluate`.
        """
        out = self.model(batch["image"], step, self.objective.draws, condition=batch.get("label"))
        loss = combine(out.terms, out.batch_terms, self.objective.weights, step, self.model.dims)
        metrics = {name: term.detach().mean() for name, term in (out.terms | out.batch_terms).items()}
        metrics |= out.bottleneck.metrics | {"loss": loss.detach()}
        if self.model.num_codes is not None:
            metrics["perplexity_batch"] = perplexity(out.bottleneck.codes, self.model.num_codes)
        return loss, metrics

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the model, by their names in it."""
        return dict(self.model.named_parameters())

    def after_step(self, step: int) -> None:
        """Called once per optimizer step on every rank, after all parts of its batch."""
        self.model.after_step(step)


def perplexity(codes: Int[Tensor, "b h w q"], num_codes: int) -> Float[Tensor, ""]:
    """exp of the entropy of the codes' histogram, averaged over quantizers; K if all K codes are used equally."""
    quantizers = codes.shape[-1]
    shifted = (codes + num_codes * torch.arange(quantizers, device=codes.device)).flatten()
    counts = torch.zeros(quantizers * num_codes, device=codes.device)
    # Unlike bincount, index_add does not wait for the device.
    counts.index_add_(0, shifted, torch.ones_like(shifted, dtype=counts.dtype))
    frequency = counts.view(quantizers, num_codes) * quantizers / shifted.numel()
    return torch.special.entr(frequency).sum(1).exp().mean()
