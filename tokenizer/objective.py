"""The objective: one visible weighted sum of named terms, and the phase that trains an autoencoder with it."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tokenizer.autoencoder import Autoencoder
from tokenizer.schedules import Schedule


class ObjectiveConfig(BaseModel):
    """A weight, constant or scheduled, for every term of the model, by the term's name.

    Terms are in nats per image (squared errors: sums per image), so `{nll: 1, kl: 1}` is the negative ELBO and a weight
    means the same whatever the picture's size or the batch's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    weights: dict[str, Schedule] = Field(min_length=1)


def weighted_sum(
    terms: Mapping[str, Float[Tensor, " b"]], weights: Mapping[str, Any], step: int, dims: int
) -> Float[Tensor, ""]:
    """Σ weight(step) · mean over the batch of term, divided once by `dims` = c · H · W.

    The division sets the loss's scale, never the balance of its terms. Raises ValueError as `check_weights` does.
    """
    check_weights(weights, terms)
    return torch.stack([weights[name].at(step) * term.mean() for name, term in terms.items()]).sum() / dims


def check_weights(weights: Mapping[str, Any], terms: Mapping[str, Any] | set[str]) -> None:
    """Raises ValueError when a weight names no term or a term has no weight."""
    if set(weights) != set(terms):
        raise ValueError(
            f"objective weights are for {sorted(weights)}, the model's terms are {sorted(terms)}: "
            "every term needs a weight (0 switches it off), and every weight a term"
        )


class AutoencoderPhase(nn.Module):
    """One step of training an autoencoder, as the training loop sees it.

    The model is the caller's and stays reachable as `.model`: another phase may hold it too and see the same batch.
    Raises ValueError at construction when weights and terms do not match.
    """

    def __init__(self, model: Autoencoder, objective: ObjectiveConfig):
        super().__init__()
        check_weights(objective.weights, model.term_names())
        self.model = model
        self.objective = objective

    def forward(self, batch: Mapping[str, Any], step: int) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """batch["image"]: uint8 (b, c, H, W) or float in [0, 1].

        Metrics are detached scalars, means over the batch: each term per image, "loss" per dimension,
        "perplexity_batch" of a discrete model (this batch's codes only: a small batch bounds it), and in evaluation
        "psnr" in dB.
        """
        out = self.model(batch["image"], step)
        loss = weighted_sum(out.terms, self.objective.weights, step, self.model.dims)
        metrics = {name: term.detach().mean() for name, term in out.terms.items()} | {"loss": loss.detach()}
        if self.model.num_codes is not None:
            metrics["perplexity_batch"] = perplexity(out.bottlenecked.codes, self.model.num_codes)
        if not self.training:
            metrics["psnr"] = psnr(self.model.likelihood.mean(out.params), batch["image"]).mean()
        return loss, metrics


def perplexity(codes: Int[Tensor, "b h w q"], num_codes: int) -> Float[Tensor, ""]:
    """exp of the entropy of the codes' histogram, averaged over depth: that many codes in equal use are as diverse."""
    depth = codes.shape[-1]
    shifted = (codes + num_codes * torch.arange(depth, device=codes.device)).flatten()
    counts = torch.zeros(depth * num_codes, device=codes.device)
    counts.index_add_(
        0, shifted, torch.ones_like(shifted, dtype=counts.dtype)
    )  # unlike bincount, no wait for the device
    frequency = counts.view(depth, num_codes) * depth / shifted.numel()
    return torch.special.entr(frequency).sum(1).exp().mean()


def psnr(pictures: Float[Tensor, "b c h w"], originals: Tensor) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1] against originals, uint8 or float in [0, 1]."""
    originals = originals.float() / 255 if originals.dtype == torch.uint8 else originals.float()
    error = (pictures.float() - originals).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-10))
