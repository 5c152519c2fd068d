"""Where a token stands: learned vectors of its axes, or rotations of queries and keys."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prior.vocabulary import Segment, Vocabulary


class AxialPositions(nn.Module):
    """Learned embedding of the place that each input predicts: the sum of one vector per axis of its segment.

    Input i predicts position i + 1. Every predicted segment has vectors of its own: row + column (+ quantizer) for the
    codes of an image. Axes of size 1 are left out.
    """

    def __init__(self, dim: int, vocabulary: Vocabulary):
        super().__init__()
        self.length = vocabulary.length - 1
        predicted = vocabulary.segments if vocabulary.condition.length > 1 else vocabulary.segments[1:]
        self.segments = nn.ModuleList(_axes(dim, segment) for segment in predicted)

    def table(self) -> Float[Tensor, "n d"]:
        """One row for each input."""
        return torch.cat([_summed([axis.weight for axis in axes]) for axes in self.segments])[-self.length :]  # pyright: ignore


def _axes(dim: int, segment: Segment) -> nn.ModuleList:
    axes = [nn.Embedding(size, dim) for size in segment.axes if size > 1] or [nn.Embedding(1, dim)]
    for axis in axes:
        nn.init.normal_(axis.weight, std=dim**-0.5)
    return nn.ModuleList(axes)


def _summed(axes: list[Tensor]) -> Float[Tensor, "n d"]:
    total = axes[0]
    for axis in axes[1:]:
        total = (total[:, None] + axis).flatten(0, 1)
    return total


def rotary_angles(length: int, dim: int, device: torch.device) -> Float[Tensor, "n d"]:
    """Angles of each place, pairs interleaved (arXiv 2104.09864, equation 34).

    Always float32 and never a buffer: casting a module to half precision would round frequencies and places, and at
    place 512 the angles would be wrong by about a radian.
    """
    frequencies = 1 / 10_000 ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    places = torch.arange(length, dtype=torch.float32, device=device)
    return (places[:, None] * frequencies).repeat_interleave(2, dim=-1)
