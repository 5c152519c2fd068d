"""Where the codes of an image stand: on one grid, or on several, coarse to fine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class CodeGrid:
    """A grid of `num_quantizers` codes a position, each an integer in [0, num_codes)."""

    rows: int
    columns: int
    num_quantizers: int
    num_codes: int

    @property
    def axes(self) -> tuple[int, int, int]:
        """(h, w, q)."""
        return self.rows, self.columns, self.num_quantizers

    @property
    def length(self) -> int:
        """Number of codes."""
        return math.prod(self.axes)

    def __str__(self) -> str:
        return " x ".join(map(str, self.axes))


CodeGrids = tuple[CodeGrid, ...]
"""Coarse to fine. The codes of an image are a tensor (h, w, q) of one grid. Of several they are a tensor (n,): grid
after grid, each in raster order, the quantizers of a position side by side."""


def code_axes(grids: CodeGrids) -> tuple[int, ...]:
    """The shape of the codes of one image: (h, w, q) of one grid, (n,) of several."""
    return grids[0].axes if len(grids) == 1 else (sum(grid.length for grid in grids),)


def split_codes(codes: Tensor, grids: CodeGrids) -> list[Tensor]:
    """(b, *code_axes) -> (b, h, w, q) of each grid. Raises ValueError for another shape."""
    if tuple(codes.shape[1:]) != code_axes(grids):
        expected = " then ".join(map(str, grids))
        raise ValueError(
            f"codes have the shape {tuple(codes.shape[1:])}, expected {code_axes(grids)} "
            f"(rows x columns x num_quantizers: {expected})"
        )
    if len(grids) == 1:
        return [codes]
    parts = codes.split([grid.length for grid in grids], dim=1)
    return [part.unflatten(1, grid.axes) for part, grid in zip(parts, grids, strict=True)]


def join_codes(levels: Sequence[Shaped[Tensor, "b _ _ _"]]) -> Tensor:
    """Inverse of `split_codes`."""
    return levels[0] if len(levels) == 1 else torch.cat([level.flatten(1) for level in levels], dim=1)


def marked_positions(marked: Bool[Tensor, " b *codes"], grids: CodeGrids) -> Bool[Tensor, "b h w"]:
    """The positions of the finest grid at which a code of any grid is marked."""
    size = grids[-1].rows, grids[-1].columns
    levels = [level.any(-1)[:, None].float() for level in split_codes(marked, grids)]
    return torch.cat([F.interpolate(level, size=size) for level in levels], dim=1).any(1)
