"""The objective: one visible weighted sum of named terms, and the phase that trains an autoencoder with it."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from tokenizer.autoencoder import Autoencoder, AutoencoderOutput
from tokenizer.code_grids import CodeGrids, split_codes
from tokenizer.kl_guards import KLGuard, guarded_batch
from tokenizer.options import Options
from tokenizer.regularizers import (
    LATENTS,
    OTHERS,
    LatentDiscriminator,
    LatentDiscriminatorConfig,
    RegularizerConfig,
    latent_rows,
)
from tokenizer.schedules import Schedule


class ObjectiveConfig(Options):
    """A weight of at least 0, constant or scheduled, for every term of the model, by the term's name.

    Terms are in nats per image (squared errors: sums per image), so `{nll: 1, kl: 1}` is the negative ELBO and a weight
    means the same whatever the size of images and batch.

    draws: latents sampled for each image of a continuous model. With more than one the objective is the
        importance-weighted bound (IWAE, arXiv 1509.00519).
    gradient_estimator: of the encoder. "doubly_reparameterized" (arXiv 1810.04152) has less variance, the more so the
        more draws there are; with one draw it is the path derivative (arXiv 1703.09194).
    kl_guard: what takes the place of the plain KL in the loss. Its allowances are for the mean over images: in training
        those of each part of a batch that a process holds at once, in validation all of them.
    regularizers: terms of the whole batch on the latents; each needs a weight, by the name of its kind. They are
        estimated in each part of a batch that a process holds at once, and are no part of the figures of evaluation.
    discriminator: a network of a phase of its own that tells the latents from others; its term too needs a weight.
    """

    weights: dict[str, Schedule] = Field(min_length=1)
    draws: int = Field(default=1, ge=1)
    gradient_estimator: Literal["reparameterized", "doubly_reparameterized"] = "reparameterized"
    kl_guard: KLGuard | None = None
    regularizers: tuple[RegularizerConfig, ...] = ()
    discriminator: LatentDiscriminatorConfig | None = None

    @property
    def latent_terms(self) -> list[str]:
        """The names of the terms of regularizers and discriminator."""
        names = [regularizer.kind for regularizer in self.regularizers]
        return [*names, self.discriminator.term] if self.discriminator else names

    @model_validator(mode="after")
    def _each_term_is_computed_once(self):
        for name, count in Counter(self.latent_terms).items():
            if count > 1:
                raise ValueError(f"regularizers and discriminator: found {count} for the term {name}, expected one")
        return self

    @model_validator(mode="after")
    def _terms_of_the_batch_have_the_plain_gradient(self):
        if self.latent_terms and self.gradient_estimator != "reparameterized":
            raise ValueError(
                f"regularizers and discriminator: found {', '.join(self.latent_terms)} with gradient_estimator: "
                f"{self.gradient_estimator}, which weighs the gradient of each latent; expected reparameterized"
            )
        return self

    @model_validator(mode="after")
    def _guards_have_a_closed_form(self):
        if self.kl_guard and (self.draws > 1 or self.gradient_estimator != "reparameterized"):
            raise ValueError(
                "kl_guard needs the KL in closed form: expected draws: 1 and gradient_estimator: reparameterized"
            )
        return self

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
            f"weights: found {sorted(weights)}, the model's terms are {sorted(terms)}: every term "
            "needs a weight (0 switches it off), and every weight a term"
        )


def weighted_sum(
    terms: Mapping[str, Float[Tensor, "b _"]], weights: Mapping[str, Any], step: int
) -> Float[Tensor, "b k"]:
    """Σ weight(step) · term of each draw of each image.

    A term of weight 0 is left out, so it may be infinite. A term of one column counts for every draw.
    """
    total = torch.zeros_like(next(iter(terms.values())))
    for name, term in terms.items():
        if weight := weights[name].at(step):
            total = total + weight * term
    return total


def importance_bound(per_draw: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """-ln mean exp(-x) over the draws (IWAE, arXiv 1509.00519, equation 8); x itself of a single draw."""
    draws = per_draw.shape[1]
    return per_draw[:, 0] if draws == 1 else math.log(draws) - torch.logsumexp(-per_draw, dim=1)


def image_loss(out: AutoencoderOutput, objective: ObjectiveConfig, step: int) -> Float[Tensor, " b"]:
    """The objective of each image alone, in nats: without the terms of the batch, and without a guarded KL, whose
    allowances are for the mean over images.
    """
    terms = {name: term for name, term in out.terms.items() if name != "kl" or objective.kl_guard is None}
    return importance_bound(weighted_sum(terms, objective.weights, step))


def combine(out: AutoencoderOutput, objective: ObjectiveConfig, step: int) -> Float[Tensor, ""]:
    """The loss in nats per image: the mean over the batch of the weighted sum, or of its importance-weighted bound,
    plus the weighted batch terms.

    Raises:
        ValueError: as `check_weights` does, or when a guard finds no KL in closed form.
    """
    weights, terms, batch_terms = objective.weights, dict(out.terms), dict(out.batch_terms)
    check_weights(weights, {*terms, *batch_terms})
    if objective.kl_guard:
        if out.kl_elements is None:
            raise ValueError("kl_guard: the KL has no closed form for this posterior and this latent prior")
        del terms["kl"]
        batch_terms["kl"] = guarded_batch(objective.kl_guard, out.kl_elements, step)
    per_draw = weighted_sum(terms, weights, step)
    if objective.gradient_estimator == "doubly_reparameterized":
        _weigh_gradient(out.z, per_draw, weights["kl"].at(step))
    loss = importance_bound(per_draw).mean()
    for name, term in batch_terms.items():
        if weight := weights[name].at(step):
            loss = loss + weight * term
    return loss


def _weigh_gradient(z: Float[Tensor, "b k d h w"], per_draw: Float[Tensor, "b k"], beta: float) -> None:
    """Weigh what z passes back to the encoder once more.

    The loss already weighs each draw's gradient by its normalised importance weight w. The doubly reparameterised one
    has w² (Tucker et al. 2018, arXiv 1810.04152, equation 7). Where the KL weighs `beta`, so does the score that is
    reparameterised, which gives w (1 - beta + beta w). The decoder's gradient does not pass here.
    """
    factor = 1 - beta + beta * (-per_draw.detach()).softmax(1)
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * factor[..., None, None, None])


class AutoencoderPhase(nn.Module):
    """One step of training an autoencoder, as the training loop sees it.

    The model belongs to the caller and stays reachable as `.model`: another phase may hold it too and see the same
    batch. Raises ValueError at construction when weights and terms do not match, when several draws or a guard of the
    KL are asked of a latent that is not random, or when the latent does not offer what the objective needs.

    `discriminator` belongs to `LatentDiscriminatorPhase`, which trains it on what this phase adds to the batch.
    """

    def __init__(self, model: Autoencoder, objective: ObjectiveConfig):
        super().__init__()
        if not model.is_random:
            _refuse_options_of_random_latents(objective, model.config.bottleneck.kind)
        out = _probe(model, objective)
        check_weights(objective.weights, {*out.terms, *out.batch_terms, *objective.latent_terms})
        _check_kl_is_weighed(objective, model)
        if objective.kl_guard:
            _check_guard(objective.kl_guard, out, model.latent_shapes)
        if objective.latent_terms:
            _refuse_other_latents(objective, out, model.config.bottleneck.kind)
        self.model = model
        self.objective = objective
        self.discriminator = (
            LatentDiscriminator(objective.discriminator, out.z[0, 0].numel()) if objective.discriminator else None
        )

    def forward(self, batch: dict[str, Any], step: int) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """batch["image"]: uint8 (b, c, H, W) or float in [0, 1]; batch["label"] is the condition, if the model has one.
        For a discriminator's phase the batch gets two entries, see `tokenizer.regularizers.discriminator`.

        Metrics are detached scalars: the mean over the batch of each unweighted term, "loss" per dimension,
        "perplexity_batch" of a discrete model (this batch's codes only: a small batch bounds it; of several levels the
        mean, and each, coarse to fine), and the bottleneck's own. Figures of evaluation come from `evaluate`.
        """
        doubly = self.objective.gradient_estimator == "doubly_reparameterized"
        labels = batch.get("label") if self.model.takes_labels else None
        out = self.model(batch["image"], step, self.objective.draws, condition=labels, detached_density=doubly)
        out, found = self._regularized(out, batch)
        # Divided once: this sets the loss's scale, never the balance of its terms.
        loss = combine(out, self.objective, step) / self.model.dims
        metrics = {name: term.detach().mean() for name, term in (out.terms | out.batch_terms).items()}
        metrics |= out.bottleneck.metrics | found | {"loss": loss.detach()}
        if out.bottleneck.codes is not None:
            metrics |= batch_perplexities(out.bottleneck.codes, self.model.code_grids)
        return loss, metrics

    def _regularized(
        self, out: AutoencoderOutput, batch: dict[str, Any]
    ) -> tuple[AutoencoderOutput, dict[str, Float[Tensor, ""]]]:
        """The output with the terms of regularizers and discriminator, and the metrics of the regularizers."""
        terms, metrics = dict(out.batch_terms), {}
        for regularizer in self.objective.regularizers:
            found = regularizer.regularize(out)
            terms[regularizer.kind] = found.term
            metrics |= found.metrics
        if (options := self.objective.discriminator) and self.discriminator is not None:
            z = latent_rows(out.z)
            terms[options.term] = options.loss(self.discriminator.frozen(z))
            assert out.latent_prior is not None
            with torch.no_grad():
                batch[LATENTS], batch[OTHERS] = z.detach(), options.others(z, out.latent_prior)
        return replace(out, batch_terms=terms), metrics

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the model, by their names in it."""
        return dict(self.model.named_parameters())

    def after_step(self, step: int) -> None:
        """Called once per optimizer step on every rank, after all parts of its batch."""
        self.model.after_step(step)


def _probe(model: Autoencoder, objective: ObjectiveConfig) -> AutoencoderOutput:
    """Raises ValueError when the posterior does not offer the estimator of the gradient."""
    if objective.gradient_estimator == "reparameterized":
        return model.probe()
    try:
        return model.probe(detached_density=True)
    except ValueError as error:
        raise ValueError(
            f"gradient_estimator: found {objective.gradient_estimator}, but {error}; expected reparameterized"
        ) from error


def _refuse_options_of_random_latents(objective: ObjectiveConfig, kind: str) -> None:
    for name in ("draws", "gradient_estimator", "kl_guard"):
        found, expected = getattr(objective, name), ObjectiveConfig.model_fields[name].default
        if found != expected:
            raise ValueError(f"{name}: found {found}, expected {expected}: the latent of a {kind} model is not random")


def _check_kl_is_weighed(objective: ObjectiveConfig, model: Autoencoder) -> None:
    """Raises ValueError when nothing counts the KL, though a prior learns from it or a guard stands in its place."""
    if "kl" not in objective.weights or objective.weights["kl"].highest > 0:
        return
    prior, levels = model.config.latent_prior.kind, len(model.latent_shapes)
    if prior != "standard_normal" or levels > 1:
        name = prior if levels == 1 else f"{prior} above {levels - 1} levels"
        raise ValueError(f"weights.kl: found 0 at every step, but the latent prior, {name}, learns from the KL alone")
    if objective.kl_guard is not None:
        raise ValueError("kl_guard: found one where weights.kl is 0 at every step, so that it has no effect")


def _check_guard(guard: KLGuard, out: AutoencoderOutput, shapes: tuple[tuple[int, int, int], ...]) -> None:
    """Raises ValueError when a part of the KL is sampled, which may be negative, or the guard has no parts to see."""
    posterior = out.bottleneck.posterior
    if out.kl_elements is None or posterior is None or not posterior.has_closed_form(out.latent_prior):
        raise ValueError("kl_guard: the KL has no closed form for this posterior and this latent prior")
    guard.check_elements(out.kl_elements, shapes)


def _refuse_other_latents(objective: ObjectiveConfig, out: AutoencoderOutput, kind: str) -> None:
    """Raises ValueError when a regularizer or the discriminator does not fit the latent."""
    if out.latent_prior is None:
        raise ValueError(
            f"regularizers and discriminator: found {', '.join(objective.latent_terms)}, but the latent of a "
            f"{kind} model is discrete; expected a continuous bottleneck or none of them"
        )
    for regularizer in objective.regularizers:
        try:
            regularizer.check_latent(out)
        except ValueError as error:
            raise ValueError(f"regularizers: {regularizer.kind}: {error}") from error


def batch_perplexities(codes: Int[Tensor, " b *codes"], grids: CodeGrids) -> dict[str, Float[Tensor, ""]]:
    """The mean over the levels and, where there are several, each of them."""
    levels = zip(split_codes(codes, grids), grids, strict=True)
    found = [perplexity(level, grid.num_codes) for level, grid in levels]
    each = {f"perplexity_batch_{i}": value for i, value in enumerate(found, 1)} if len(found) > 1 else {}
    return {"perplexity_batch": torch.stack(found).mean()} | each


def perplexity(codes: Int[Tensor, "b h w q"], num_codes: int) -> Float[Tensor, ""]:
    """exp of the entropy of the codes' histogram, averaged over quantizers; K if all K codes are used equally."""
    quantizers = codes.shape[-1]
    shifted = (codes + num_codes * torch.arange(quantizers, device=codes.device)).flatten()
    counts = torch.zeros(quantizers * num_codes, device=codes.device)
    # Unlike bincount, index_add does not wait for the device.
    counts.index_add_(0, shifted, torch.ones_like(shifted, dtype=counts.dtype))
    frequency = counts.view(quantizers, num_codes) * quantizers / shifted.numel()
    return torch.special.entr(frequency).sum(1).exp().mean()
