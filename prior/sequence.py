"""Grids of codes as sequences of ids: raster order, the quantizers of a cell one after the other."""

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from prior.vocabulary import Vocabulary


def code_offsets(vocabulary: Vocabulary, device: torch.device) -> Int[Tensor, " n"]:
    """What turns the code at each position into its id."""
    return torch.tensor(vocabulary.code_offsets, device=device)


def codes_to_tokens(codes: Integer[Tensor, "b h w q"], vocabulary: Vocabulary) -> Int[Tensor, "b n"]:
    """Ids of whole images; any integer dtype.

    Raises ValueError when the grid is not that of the vocabulary, or (on the CPU, where looking costs nothing) when a
    code lies outside [0, num_codes): it would silently be read as a code of another quantizer.
    """
    if codes.shape[1:] != vocabulary.codes.axes:
        found, expected = tuple(codes.shape[1:]), vocabulary.codes.axes
        raise ValueError(f"codes have the grid {found}, the prior expects {expected} (h, w, q)")
    codes = codes.flatten(1).long()
    check_range(codes, vocabulary.codes.size, "codes")
    return codes + code_offsets(vocabulary, codes.device)


def tokens_to_codes(tokens: Int[Tensor, "b n"], vocabulary: Vocabulary) -> Int[Tensor, "b h w q"]:
    """Inverse of `codes_to_tokens`."""
    return (tokens - code_offsets(vocabulary, tokens.device)).unflatten(1, vocabulary.codes.axes)


def check_range(values: Int[Tensor, "..."], limit: int, name: str) -> None:
    """Raise ValueError for a value outside [0, limit); looks only at tensors on the CPU."""
    if values.device.type == "cpu" and values.numel():
        low, high = (int(value) for value in values.aminmax())
        if low < 0 or high >= limit:
            raise ValueError(f"{name} must lie in [0, {limit}), found {low if low < 0 else high}")
