"""Grids of codes as sequences of ids: level by level in raster order, the quantizers of a cell one after the other."""

from itertools import accumulate

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from prior.vocabulary import Vocabulary


def code_offsets(vocabulary: Vocabulary, device: torch.device) -> Int[Tensor, " n"]:
    """What turns the code at each position into its id."""
    return torch.tensor(vocabulary.code_offsets, device=device)


def codes_to_tokens(codes: Integer[Tensor, " b *axes"], vocabulary: Vocabulary) -> Int[Tensor, "b n"]:
    """Ids of whole images; any integer dtype.

    Raises ValueError when the grid is not that of the vocabulary, or (on the CPU, where looking costs nothing) when a
    code lies outside [0, num_codes) of its level: it would silently be read as a code of another quantizer or level.
    """
    if codes.shape[1:] != vocabulary.code_axes:
        found, expected = tuple(codes.shape[1:]), vocabulary.code_axes
        meaning = "h, w, q" if len(expected) == 3 else "the codes of all levels"
        raise ValueError(f"codes have the grid {found}, the prior expects {expected} ({meaning})")
    codes = codes.flatten(1).long()
    check_codes(codes, vocabulary, "codes")
    return codes + code_offsets(vocabulary, codes.device)


def check_codes(codes: Int[Tensor, "b m"], vocabulary: Vocabulary, name: str) -> None:
    """Raise ValueError when one of the first m codes of images is out of the range of its level; see `check_range`."""
    lengths = [segment.length for segment in vocabulary.codes]
    for segment, start in zip(vocabulary.codes, accumulate(lengths[:-1], initial=0), strict=True):
        check_range(codes[:, start : start + segment.length], segment.size, name)


def tokens_to_codes(tokens: Int[Tensor, "b n"], vocabulary: Vocabulary) -> Int[Tensor, " b *axes"]:
    """Inverse of `codes_to_tokens`."""
    return (tokens - code_offsets(vocabulary, tokens.device)).unflatten(1, vocabulary.code_axes)


def check_range(values: Int[Tensor, "..."], limit: int, name: str) -> None:
    """Raise ValueError for a value outside [0, limit); looks only at tensors on the CPU."""
    if values.device.type == "cpu" and values.numel():
        low, high = (int(value) for value in values.aminmax())
        if low < 0 or high >= limit:
            raise ValueError(f"{name} must lie in [0, {limit}), found {low if low < 0 else high}")
