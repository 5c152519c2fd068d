"""Drawing scenes of the `composition` data: pixel art of 16 x 16 cells, at any number of pixels.

At 32 pixels a cell is 2 pixels wide. Objects of a side lie on one phase of a grid of 4 pixels wherever they stand.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data.composition.pixel_art import Cover, filled, turned
from pipelines.data.composition.scenes import (
    COLOURS,
    FILLS,
    GROUNDS,
    POSITIONS,
    ROTATIONS,
    SHAPES,
    SIZES,
    SceneKind,
    Values,
)

CELLS = 16  # to the image's side
SIDES = {"small": 8, "large": 12}  # of single objects, in cells
PAIRED, COUNTED = 6, 4  # sides of the objects of pairs and of counts
PLACES = 3  # columns, and rows, in which an object stands
FIRST_CELL = {12: (0, 2, 4), 8: (0, 4, 8), PAIRED: (1, 5, 9), COUNTED: (0, 6, 12)}  # by side: of each place

PALETTE = np.array(list(COLOURS.values()), np.float32)
GROUND_PALETTE = np.array(list(GROUNDS.values()), np.float32)
USUAL = {"heart": "down", "T": "down"}  # where objects point whose caption does not say so; the others point up


@lru_cache
def covers(side: int) -> Cover:
    """Objects of scenes of one: (shapes, rotations, fills, side, side)."""
    up = np.stack([filled(side, fill) for fill in FILLS], 1)
    return np.ascontiguousarray(np.stack([turned(up, quarters) for quarters in range(len(ROTATIONS))], 1))


@lru_cache
def usual_covers(side: int) -> Cover:
    """Objects whose caption tells shape and colour alone: (shapes, side, side)."""
    quarters = (ROTATIONS.index(USUAL.get(shape, "up")) for shape in SHAPES)
    return np.stack([turned(up, turns) for up, turns in zip(filled(side, "solid"), quarters, strict=True)])


@lru_cache(maxsize=8)
def cells_to_pixels(size: int) -> NDArray[np.float32]:
    """(size, 16): the share of each row of pixels that lies in each row of cells."""
    edges = np.arange(size + 1) * CELLS / size
    cell = np.arange(CELLS)
    overlap = np.minimum(edges[1:, None], cell + 1) - np.maximum(edges[:-1, None], cell)
    return (np.clip(overlap, 0, None) * size / CELLS).astype(np.float32)


def first_cells(place: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Where objects begin that stand in columns or rows `place`."""
    return np.array(FIRST_CELL[side])[place]


@dataclass(frozen=True)
class _Objects:
    """Objects in scenes `rows`, at most one in each: covers (m, side, side), colours (m,), columns and rows (m, 2)."""

    rows: NDArray[np.int64]
    cover: Cover
    colour: NDArray[np.int64]
    place: NDArray[np.int64]


def draw(kind: SceneKind, values: Values, u: NDArray[np.float64], size: int) -> UInt8[Tensor, "n 3 size size"]:
    """Images of scenes. `u` (n, 9), uniform in [0, 1), places the objects whose caption does not."""
    named = dict(zip(kind.factors, values.T, strict=True))
    cells = np.empty((len(values), CELLS, CELLS, 3), np.float32)
    cells[:] = GROUND_PALETTE[named["ground"], None, None]
    for objects in _LAYOUTS[kind.name](named, u):
        _paint(cells, objects)
    cells = np.ascontiguousarray(cells.transpose(0, 3, 1, 2))
    if size % CELLS:
        scale = cells_to_pixels(size)
        return torch.from_numpy(np.rint(scale @ cells @ scale.T).astype(np.uint8))
    pixels = torch.from_numpy(np.rint(cells).astype(np.uint8))
    return pixels.repeat_interleave(size // CELLS, 2).repeat_interleave(size // CELLS, 3)


def _paint(cells: NDArray[np.float32], objects: _Objects) -> None:
    side = objects.cover.shape[-1]
    cell = first_cells(objects.place, side)[:, None] + np.arange(side)[:, None]  # (m, side, xy)
    at = objects.rows[:, None, None], cell[:, :, None, 1], cell[:, None, :, 0]
    under = cells[at]
    cells[at] = under + objects.cover[..., None] * (PALETTE[objects.colour][:, None, None] - under)


Named = dict[str, NDArray[np.int64]]  # a number a scene, by factor


def _single(named: Named, u: NDArray[np.float64]) -> list[_Objects]:
    found, places = [], np.array(list(POSITIONS.values()))
    for number, name in enumerate(SIZES):
        rows = np.flatnonzero(named["size"] == number)
        shape, rotation, fill, colour, position = (
            named[factor][rows] for factor in ("shape", "rotation", "fill", "colour", "position")
        )
        found.append(_Objects(rows, covers(SIDES[name])[shape, rotation, fill], colour, places[position]))
    return found


def _pair(named: Named, u: NDArray[np.float64]) -> list[_Objects]:
    """Two objects at opposite edges: side by side in any row, or one over the other in any column."""
    rows, usual = np.arange(len(u)), usual_covers(PAIRED)
    along, far = np.divmod(named["relation"], 2)  # which axis; whether the first object stands at its far end
    first = np.repeat((u[:, :1] * PLACES).astype(np.int64), 2, 1)
    other = first.copy()
    first[rows, along], other[rows, along] = (PLACES - 1) * far, (PLACES - 1) * (1 - far)
    return [
        _Objects(rows, usual[named["shape"]], named["colour"], first),
        _Objects(rows, usual[named["other_shape"]], named["other_colour"], other),
    ]


def _several(named: Named, u: NDArray[np.float64]) -> list[_Objects]:
    usual, places = usual_covers(COUNTED), np.stack(np.divmod(np.argsort(u, axis=1), PLACES), -1)
    found = []
    for number in range(int(named["count"].max(initial=-1)) + 1):
        rows = np.flatnonzero(named["count"] >= number)
        found.append(_Objects(rows, usual[named["shape"][rows]], named["colour"][rows], places[rows, number]))
    return found


_LAYOUTS = {"object": _single, "relation": _pair, "count": _several}
