"""Drawing scenes of the `composition` data.

Lengths are in units, 32 to the image's side. Every object fills the middle of a square box, which stands at the left,
in the middle or at the right, and at the top, in the middle or at the bottom. At 32 pixels boxes lie on a grid of 4
pixels and straight edges lie between pixels, so that few different patches make up all pictures.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

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

UNITS = 32.0  # to the image's side
BOX, TINY_BOX = 2, 4  # boxes to the image's side: of single objects and pairs, of counted objects
HALF = {"small": 6, "large": 8}  # half the side of an object
TINY_HALF = 4
STROKE = 2.0  # width of an outline, of a stripe, and of the gap between two stripes
GAP_COVER = 0.3  # the colour's share in a gap: the shape is seen all the same
PLACES = 3  # columns, and rows, in which a box stands

PALETTE = np.array(list(COLOURS.values()), np.float32)
GROUND_PALETTE = np.array(list(GROUNDS.values()), np.float32)
USUAL = {"heart": "down", "T": "down"}  # where objects point whose caption does not say so; the others point up

Cover = NDArray[np.float32]  # the share of each pixel that an object covers


def corners(shape: str) -> NDArray[np.float64]:
    """Corners (m, 2) of a shape that points up, in -1 … 1: x to the right, y down."""
    match shape:
        case "arrow":
            found = [(0, -1), (1, 0), (0.5, 0), (0.5, 1), (-0.5, 1), (-0.5, 0), (-1, 0)]
        case "triangle":
            found = [(0, -1), (1, 1), (-1, 1)]
        case "heart":
            return _heart()
        case "crown":
            found = [(-1, 1), (-1, -1), (-0.5, 0), (0, -1), (0.5, 0), (1, -1), (1, 1)]
        case "house":
            door = [(0.35, 1), (0.35, 0.35), (-0.35, 0.35), (-0.35, 1)]
            found = [(0, -1), (1, 0), (1, 1), *door, (-1, 1), (-1, 0)]
        case _:
            found = [(-1, 1), (1, 1), (1, 0), (0.5, 0), (0.5, -1), (-0.5, -1), (-0.5, 0), (-1, 0)]
    return np.array(found, np.float64)


def _heart() -> NDArray[np.float64]:
    """https://mathworld.wolfram.com/HeartCurve.html, tip up, stretched to fill the square."""
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, 2 * (y - y.min()) / (y.max() - y.min()) - 1], -1)


def distance(points: NDArray[np.float64], polygon: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signed distances of points (…, 2) from the outline of a polygon (m, 2), negative inside."""
    begin, along = polygon, np.roll(polygon, -1, 0) - polygon
    offset = points[..., None, :] - begin
    nearest = np.clip((offset * along).sum(-1) / (along**2).sum(-1), 0, 1)
    far = np.sqrt(((offset - nearest[..., None] * along) ** 2).sum(-1)).min(-1)
    # A ray to the right crosses the outline an odd number of times from inside.
    crossing = (begin[:, 1] > points[..., 1, None]) != (begin[:, 1] + along[:, 1] > points[..., 1, None])
    slope = along[:, 0] / np.where(along[:, 1] == 0, 1, along[:, 1])
    right = offset[..., 0] < slope * offset[..., 1]
    return np.where((crossing & right).sum(-1) % 2, -far, far)


def cover(shape: str, half: int, fill: str, box: int, unit: float) -> Cover:
    """(box, box) of an object that points up in a box of so many pixels, `unit` pixels to the unit of length."""
    grid = (np.arange(box) + 0.5 - box / 2) / unit
    points = np.stack(np.meshgrid(grid, grid), -1).astype(np.float64)
    polygon = corners(shape) * half
    outside = distance(points, polygon if shape == "heart" else np.round(polygon))
    shares = lambda distances: np.clip(0.5 - distances * unit, 0, 1)  # noqa: E731
    match fill:
        case "solid":
            found = shares(outside)
        case "outlined":
            found = shares(np.maximum(outside, -outside - STROKE))
        case _:
            gap = np.abs((half - points[..., 1]) % (2 * STROKE) - STROKE / 2) - STROKE / 2
            found = GAP_COVER * shares(outside) + (1 - GAP_COVER) * shares(np.maximum(outside, gap))
    return found.astype(np.float32)


@lru_cache(maxsize=4)
def covers(size: int) -> Cover:
    """Of all objects of a scene of one, in an image of `size` pixels: (shapes, sizes, rotations, fills, box, box)."""
    box = size // BOX
    up = [[[cover(s, HALF[z], f, box, size / UNITS) for f in FILLS] for z in SIZES] for s in SHAPES]
    turned = [np.rot90(np.array(up), -turns, axes=(-2, -1)) for turns in range(len(ROTATIONS))]
    return np.ascontiguousarray(np.stack(turned, axis=2))


@lru_cache(maxsize=4)
def usual_covers(size: int, tiny: bool) -> Cover:
    """Of objects whose caption tells shape and colour alone: (shapes, box, box)."""
    turns = [ROTATIONS.index(USUAL.get(shape, "up")) for shape in SHAPES]
    if not tiny:
        return covers(size)[np.arange(len(SHAPES)), SIZES.index("small"), turns, FILLS.index("solid")]
    up = (cover(shape, TINY_HALF, "solid", size // TINY_BOX, size / UNITS) for shape in SHAPES)
    return np.stack([np.rot90(one, -turn) for one, turn in zip(up, turns, strict=True)])


def corner(place: NDArray[np.int64], box: int, size: int) -> NDArray[np.int64]:
    """The first pixel of boxes that stand in columns or rows `place` of an image."""
    return np.rint(place * (size - box) / (PLACES - 1)).astype(np.int64)


@dataclass(frozen=True)
class _Objects:
    """Objects in scenes `rows`, at most one in each: covers (m, box, box), colours (m,), columns and rows (m, 2)."""

    rows: NDArray[np.int64]
    cover: Cover
    colour: NDArray[np.int64]
    place: NDArray[np.int64]


def draw(kind: SceneKind, values: Values, u: NDArray[np.float64], size: int) -> UInt8[Tensor, "n 3 size size"]:
    """Antialiased images of scenes. `u` (n, 9), uniform in [0, 1), places the objects whose caption does not."""
    pictures = np.empty((len(values), size, size, 3), np.float32)
    named = dict(zip(kind.factors, values.T, strict=True))
    pictures[:] = GROUND_PALETTE[named["ground"], None, None]
    for objects in _LAYOUTS[kind.name](named, u, size):
        _paint(pictures, objects)
    return torch.from_numpy(np.ascontiguousarray(np.rint(pictures).astype(np.uint8).transpose(0, 3, 1, 2)))


def _paint(pictures: NDArray[np.float32], objects: _Objects) -> None:
    size, box = pictures.shape[1], objects.cover.shape[-1]
    pixel = corner(objects.place, box, size)[:, None] + np.arange(box)[:, None]  # (m, box, xy)
    at = objects.rows[:, None, None], pixel[:, :, None, 1], pixel[:, None, :, 0]
    under = pictures[at]
    pictures[at] = under + objects.cover[..., None] * (PALETTE[objects.colour][:, None, None] - under)


Named = dict[str, NDArray[np.int64]]  # a number a scene, by factor


def _single(named: Named, u: NDArray[np.float64], size: int) -> list[_Objects]:
    cover = covers(size)[named["shape"], named["size"], named["rotation"], named["fill"]]
    place = np.array(list(POSITIONS.values()))[named["position"]]
    return [_Objects(np.arange(len(cover)), cover, named["colour"], place)]


def _pair(named: Named, u: NDArray[np.float64], size: int) -> list[_Objects]:
    """Two objects at opposite edges: side by side in any row, or one over the other in any column."""
    rows, usual = np.arange(len(u)), usual_covers(size, tiny=False)
    along, far = np.divmod(named["relation"], 2)  # which axis; whether the first object stands at its far end
    first, other = np.repeat((u[:, :1] * PLACES).astype(np.int64), 2, 1), np.empty((len(u), 2), np.int64)
    other[:] = first
    first[rows, along], other[rows, along] = (PLACES - 1) * far, (PLACES - 1) * (1 - far)
    return [
        _Objects(rows, usual[named["shape"]], named["colour"], first),
        _Objects(rows, usual[named["other_shape"]], named["other_colour"], other),
    ]


def _several(named: Named, u: NDArray[np.float64], size: int) -> list[_Objects]:
    usual, places = usual_covers(size, tiny=True), np.stack(np.divmod(np.argsort(u, axis=1), PLACES), -1)
    found = []
    for number in range(int(named["count"].max(initial=-1)) + 1):
        rows = np.flatnonzero(named["count"] >= number)
        found.append(_Objects(rows, usual[named["shape"][rows]], named["colour"][rows], places[rows, number]))
    return found


_LAYOUTS = {"object": _single, "relation": _pair, "count": _several}
