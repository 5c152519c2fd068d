"""Which positions each layer attends to: all up to its own, or a row, a column or a window of the grid of codes.

Whatever the layer, the condition attends to itself causally, and a code attends to the whole condition. Within its own
level a code attends to the cells of the grid that the layer allows, and there to the codes of all quantizers, up to
itself. Levels coarser than its own it sees whole, like the condition.
"""

import math
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Annotated, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn

from prior.vocabulary import Vocabulary

Mask = Bool[Tensor, "n n"] | None
"""True where a query (row) may attend to a key (column). None: to everything before it, on the fast path of SDPA."""

T = TypeVar("T")

MOST_POSITIONS = 2**14  # whose mask takes 256 MiB


def _odd(window: int) -> int:
    if window % 2 == 0:
        raise ValueError(f"a window around a cell has an odd size, got {window}")
    return window


Window = Annotated[PositiveInt, AfterValidator(_odd)]
"""Rows and columns of a square of cells around one."""


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FullAttention(_Options):
    """All positions."""

    kind: Literal["full"] = "full"


class RowAttention(_Options):
    """The cells before its own in raster order, back to the one in the same column of the row above."""

    kind: Literal["row"] = "row"


class ColumnAttention(_Options):
    """The cells of its own column."""

    kind: Literal["column"] = "column"


class ConvolutionalAttention(_Options):
    """A window of cells around its own. In raster order: beyond the end of a row it goes on in the next one."""

    kind: Literal["convolutional"] = "convolutional"
    window: Window = Field(default=11, examples=[3])


LayerAttention = Annotated[
    FullAttention | RowAttention | ColumnAttention | ConvolutionalAttention, Field(discriminator="kind")
]


class Dalle1Attention(_Options):
    """DALL-E 1's layers (arXiv 2102.12092, B.1): row, column, row, row and so on, and convolutional in the last."""

    kind: Literal["dalle1"] = "dalle1"
    window: Window = Field(default=11, examples=[3])


class PatternAttention(_Options):
    """One entry for each of the first layers, repeated until every layer has one."""

    kind: Literal["pattern"] = "pattern"
    layers: tuple[LayerAttention, ...] = Field(min_length=1, examples=[[{"kind": "full"}, {"kind": "column"}]])


Attention = Annotated[LayerAttention | Dalle1Attention | PatternAttention, Field(discriminator="kind")]


class LayerMasks(nn.Module):
    """The mask of each layer. Layers with the same mask hold one tensor, also after a move to another device."""

    def __init__(self, masks: Sequence[Mask]):
        super().__init__()
        distinct = {id(mask): mask for mask in masks if mask is not None}
        for index, mask in enumerate(distinct.values()):
            self.register_buffer(f"mask_{index}", mask, persistent=False)
        self.of_layer = [None if mask is None else list(distinct).index(id(mask)) for mask in masks]

    @property
    def distinct(self) -> list[Bool[Tensor, "n n"]]:
        return list(self.buffers())

    def for_layers(self, of_masks: Sequence[T]) -> list[T | None]:
        """For each layer the entry of `of_masks`, in the order of `distinct`, that is of its mask; None without one."""
        return [None if index is None else of_masks[index] for index in self.of_layer]


def attention_bias(mask: Bool[Tensor, "*axes"], dtype: torch.dtype) -> Float[Tensor, "*axes"]:
    """What is added to the logits of attention: 0, and -inf where the mask is False.

    SDPA would make it of a mask itself, in every layer anew and for each image and head.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -math.inf)


def layer_attention(attention: Attention, depth: int) -> list[LayerAttention]:
    """What each of `depth` layers attends to."""
    match attention:
        case Dalle1Attention(window=window):
            numbers = range(1, depth)
            before = [ColumnAttention() if (number - 2) % 4 == 0 else RowAttention() for number in numbers]
            return [*before, ConvolutionalAttention(window=window)]
        case PatternAttention(layers=layers):
            return list(islice(cycle(layers), depth))
        case _:
            return [attention] * depth


def attention_masks(attention: Attention, vocabulary: Vocabulary, depth: int) -> list[Mask]:
    """The mask of each layer over all inputs of the network. Layers of one kind share a tensor.

    Raises ValueError for codes that do not lie on grids of rows and columns, or that are too many for a mask.
    """
    layers = [(layer.model_dump_json(), layer) for layer in layer_attention(attention, depth)]
    masks = {
        name: None if isinstance(layer, FullAttention) else attention_mask(layer, vocabulary)
        for name, layer in dict(layers).items()
    }
    return [masks[name] for name, _ in layers]


def attention_mask(layer: LayerAttention, vocabulary: Vocabulary) -> Bool[Tensor, "n n"]:
    """The mask of one layer; input i holds position i of the sequence. Raises ValueError as `attention_masks`."""
    if vocabulary.length > MOST_POSITIONS:
        raise ValueError(f"attention: {layer.kind!r} takes at most {MOST_POSITIONS} positions, got {vocabulary.length}")
    mask = torch.ones(vocabulary.length, vocabulary.length, dtype=torch.bool).tril()
    start = vocabulary.condition.length
    for level in vocabulary.codes:
        if len(level.shape) != 2:
            raise ValueError(f"attention: {layer.kind!r} needs codes on rows and columns, found the grid {level.shape}")
        height, width = level.shape
        seen = _of_cells(layer, height * width, width)
        seen = seen.repeat_interleave(level.num_quantizers, 0).repeat_interleave(level.num_quantizers, 1)
        own = slice(start, start + level.length)
        mask[own, own] &= seen
        start = own.stop
    return mask[:-1, :-1]  # the last code is never read


def _of_cells(layer: LayerAttention, cells: int, width: int) -> Bool[Tensor, "cells cells"]:
    """Which cells attend to which earlier ones: a matter of their distance in raster order."""
    by_distance = _sees(layer, torch.arange(cells - 1, -cells, -1), width)
    return by_distance.unfold(0, cells, 1).flip(0)


def _sees(layer: LayerAttention, distance: Int[Tensor, " n"], width: int) -> Bool[Tensor, " n"]:
    """Whether a cell attends to the one so many cells before it."""
    match layer:
        case FullAttention():
            return distance >= 0
        case RowAttention():
            return distance <= width
        case ColumnAttention():
            return distance % width == 0
        case ConvolutionalAttention(window=window):
            half = window // 2
            rows = ((distance + half) // width).clamp(max=half)
            return distance + half - rows * width <= 2 * half
