"""Grids of codes as sequences of tokens: raster order, depth minor."""

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from prior.vocabulary import Vocabulary


def depth_offsets(vocabulary: Vocabulary, device: torch.device) -> Int[Tensor, " n"]:
    """What turns the code at each position into its token: every depth has ids of its own."""
    return torch.arange(vocabulary.length, device=device) % vocabulary.depth * vocabulary.num_codes


def codes_to_tokens(codes: Int[Tensor, "b h w q"], vocabulary: Vocabulary) -> Int[Tensor, "b n"]:
    """Tokens of whole images.

    Raises ValueError when the grid is not the vocabulary's, or (where looking costs no synchronisation: on the CPU)
    when a code lies outside [0, num_codes): it would silently be read as a label or as a code of another depth.
    """
    if codes.shape[1:] != vocabulary.grid:
        raise ValueError(f"codes have the grid {tuple(codes.shape[1:])}, the prior expects {vocabulary.grid} (h, w, q)")
    refuse_outside(codes, vocabulary.num_codes, "codes")
    return rearrange(codes, "b h w q -> b (h w q)").long() + depth_offsets(vocabulary, codes.device)


def tokens_to_codes(tokens: Int[Tensor, "b n"], vocabulary: Vocabulary) -> Int[Tensor, "b h w q"]:
    """Inverse of `codes_to_tokens`."""
    height, width, depth = vocabulary.grid
    codes = tokens - depth_offsets(vocabulary, tokens.device)
    return rearrange(codes, "b (h w q) -> b h w q", h=height, w=width, q=depth)


def refuse_outside(values: Int[Tensor, "..."], limit: int, name: str) -> None:
    """Raise ValueError for a value outside [0, limit); looks only at tensors on the CPU."""
    if values.device.type == "cpu" and values.numel():
        low, high = (int(value) for value in values.aminmax())
        if low < 0 or high >= limit:
            raise ValueError(f"{name} must lie in [0, {limit}), found {low if low < 0 else high}")
