"""The condition is the first token: a label, or null where there is none or where it was dropped."""

import torch
from jaxtyping import Int
from torch import Tensor

from prior.sequence import refuse_outside
from prior.vocabulary import Vocabulary


def condition_tokens(
    vocabulary: Vocabulary, labels: Int[Tensor, " b"] | None, batch: int, device: torch.device
) -> Int[Tensor, "b 1"]:
    """The prefix of each image. Without labels it is the null condition, the one that `drop_condition` leaves behind.

    Raises ValueError for labels given to an unconditional prior, one too many or too few, or outside [0, num_classes).
    """
    if labels is None:
        return torch.full((batch, 1), vocabulary.null, device=device)
    if vocabulary.num_classes is None:
        raise ValueError("labels were given, but this prior is unconditional (num_classes is None)")
    if len(labels) != batch:
        raise ValueError(f"{len(labels)} labels were given for {batch} images")
    refuse_outside(labels, vocabulary.num_classes, "labels")
    return labels.to(device)[:, None].long() + vocabulary.first_label


def drop_condition(tokens: Int[Tensor, "b 1"], vocabulary: Vocabulary, probability: float) -> Int[Tensor, "b 1"]:
    """Each image's condition becomes null with this probability (classifier-free guidance, arXiv 2207.12598)."""
    dropped = torch.rand(tokens.shape, device=tokens.device) < probability
    return tokens.masked_fill(dropped, vocabulary.null)
