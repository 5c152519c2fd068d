"""The condition comes first in the sequence: a label or a caption, or null where there is none or it was dropped."""

import torch
from jaxtyping import Int
from torch import Tensor

from prior.sequence import check_range
from prior.vocabulary import Vocabulary


def condition_tokens(
    vocabulary: Vocabulary, condition: Int[Tensor, "b ..."] | None, batch: int, device: torch.device
) -> Int[Tensor, "b c"]:
    """The ids of each image's condition: (b,) labels or (b, c) values of a longer segment; -1 is an absent value, in a
    caption a pad.

    None, and -1 everywhere for a single image, is the null condition, the one that `drop_condition` leaves behind.

    Raises ValueError for a condition given to an unconditional prior, for the wrong shape, and for values out of range.
    """
    segment = vocabulary.condition
    null = torch.tensor(vocabulary.null_condition, device=device)
    if condition is None:
        return null.repeat(batch, 1)
    if not vocabulary.conditional:
        raise ValueError(f"{segment.name}: found a condition, but this prior is unconditional")
    if len(condition) != batch:
        raise ValueError(f"{segment.name}: found {len(condition)} rows for {batch} images")
    if condition[0].numel() != segment.length:
        raise ValueError(f"{segment.name}: found {condition[0].numel()} values a row, expected {segment.length}")
    tokens = condition.reshape(batch, segment.length).long()
    absent = tokens == -1
    check_range(tokens.masked_fill(absent, 0), vocabulary.num_conditions, segment.name)
    return torch.where(absent, null.to(tokens.device), tokens).to(device)


def drop_condition(tokens: Int[Tensor, "b c"], vocabulary: Vocabulary, probability: float) -> Int[Tensor, "b c"]:
    """Each image's condition becomes null with this probability (classifier-free guidance, arXiv 2207.12598)."""
    dropped = torch.rand(len(tokens), 1, device=tokens.device) < probability
    return torch.where(dropped, torch.tensor(vocabulary.null_condition, device=tokens.device), tokens)
