"""Next-token cross-entropy, and what it says of whole images."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from prior.token_prior import TokenPrior


class PriorPhase(nn.Module):
    """The prior as a phase of the training loop: `forward(batch, step) -> (loss, metrics)`."""

    def __init__(self, model: TokenPrior):
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor], step: int = 0) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean cross-entropy in nats per code of `batch["codes"]` (b, *axes), given `batch["label"]` (b,): -1 where
        an image has none.

        Raises ValueError when a conditional prior finds no condition in the batch; an unconditional one ignores it.
        """
        vocabulary, codes = self.model.vocabulary, batch["codes"]
        condition, name = None, vocabulary.condition.name
        if vocabulary.conditional:
            if name not in batch:
                raise ValueError(f"a prior conditional on {name!r} needs it in each batch, found {sorted(batch)}")
            condition = batch[name]
        logits = self.model(codes, condition)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten().long())
        return loss, {"loss": loss.detach(), "bits_per_token": loss.detach() / math.log(2)}

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the prior, by name."""
        return dict(self.model.named_parameters())

    def after_step(self, step: int) -> None:
        """Nothing to do."""


def sequence_logprobs(
    prior: TokenPrior, codes: Integer[Tensor, " b *axes"], condition: Int[Tensor, "b ..."] | None = None
) -> Float[Tensor, "b n"]:
    """log p(code | condition, codes before it) of every code, in nats, in evaluation mode."""
    with prior.evaluation_mode():
        logprobs = torch.log_softmax(prior(codes, condition).float(), dim=-1)
        return logprobs.gather(-1, codes.flatten(1)[..., None].long()).squeeze(-1)


def sequence_bits(
    prior: TokenPrior, codes: Integer[Tensor, " b *axes"], condition: Int[Tensor, "b ..."] | None = None
) -> Float[Tensor, " b"]:
    """-log2 p(codes | condition): the bits of each whole image."""
    return sequence_logprobs(prior, codes, condition).sum(-1) / -math.log(2)
