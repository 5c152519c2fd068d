"""Next-token cross-entropy, and what it says of whole images."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from prior.transformer import TokenPrior


class PriorPhase(nn.Module):
    """The prior as a phase of the training loop: `forward(batch, step) -> (loss, metrics)`."""

    def __init__(self, prior: TokenPrior):
        super().__init__()
        self.prior = prior

    def forward(self, batch: Mapping[str, Tensor], step: int = 0) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean cross-entropy in nats per token of `batch["codes"]` (b, h, w, q), given `batch["label"]` (b,).

        Raises ValueError when a label-conditional prior gets no label; an unconditional one ignores it.
        """
        labels = None
        if self.prior.vocabulary.num_classes is not None:
            if "label" not in batch:
                raise ValueError(f"a label-conditional prior needs 'label' in each batch, found {sorted(batch)}")
            labels = batch["label"]
        codes = batch["codes"]
        logits = self.prior(codes, labels)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten().long())
        return loss, {"loss": loss.detach(), "bits_per_token": loss.detach() / math.log(2)}


def sequence_logprobs(
    prior: TokenPrior, codes: Int[Tensor, "b h w q"], labels: Int[Tensor, " b"] | None = None
) -> Float[Tensor, "b n"]:
    """log p(code | label, codes before it) of every code, in nats, in evaluation mode."""
    with prior.evaluating():
        logprobs = torch.log_softmax(prior(codes, labels).float(), dim=-1)
        return logprobs.gather(-1, codes.flatten(1)[..., None].long()).squeeze(-1)


def sequence_bits(
    prior: TokenPrior, codes: Int[Tensor, "b h w q"], labels: Int[Tensor, " b"] | None = None
) -> Float[Tensor, " b"]:
    """-log2 p(codes | label): the bits of each whole image."""
    return sequence_logprobs(prior, codes, labels).sum(-1) / -math.log(2)
