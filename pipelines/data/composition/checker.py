"""Reading the scene of a `composition` picture back from its pixels, also of a reconstructed or a generated one.

The scene is the one whose picture is nearest to the image in squared error, the nearest of all: objects never overlap,
so that the error of a picture is a sum over objects. The image is taken to cells first, by least squares: where a cell
is a number of whole pixels that is their mean, and leaves the order of all scenes as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipelines.data.composition.drawing import (
    COUNTED,
    GROUND_PALETTE,
    PAIRED,
    PALETTE,
    PLACES,
    SIDES,
    cells_to_pixels,
    covers,
    draw,
    first_cells,
    usual_covers,
)
from pipelines.data.composition.scenes import COUNT, COUNTS, OBJECT, POSITIONS, RELATION, Scene, SceneKind

# The largest error of a legible image. Real pictures have 0. Of the reconstructions by three tokenizers at 32 pixels
# that are read right, 99 % are below 0.06 to 0.13 at a PSNR of 33 to 26 dB, and below 0.12 to 0.17 at 24 dB. An object
# of which a half is missing has at least 0.20, one with a hole of 4 x 4 pixels 0.23, a stain of so many in its colour
# 0.25, a missing or an extra object 0.6 and more. 0.08 refused a quarter of the reconstructions at 24 dB that
# are read right. What lies half-way between two scenes has 0.03 to 0.25, and is mostly taken for one of them.
TOLERANCE = 0.18
IMAGES_AT_ONCE = 250


@dataclass(frozen=True)
class Reading:
    """The `scene` nearest to an image. `error` is the largest mean squared error of any square window of a quarter of
    the side, in units of the squared distance between the colours of object and ground.
    """

    scene: Scene
    error: float

    @property
    def legible(self) -> bool:
        """Whether the image shows a scene at all."""
        return self.error <= TOLERANCE


@dataclass(frozen=True)
class _Nearest:
    """Of the scenes of one kind on one ground the nearest to each of n images: its squared error, its factors, and what
    `draw` places its objects by.
    """

    kind: SceneKind
    error: Float[Tensor, " n"]
    values: Int64[Tensor, "n factors"]
    u: Float[Tensor, "n 9"]


def read_scenes(images: UInt8[Tensor, "n 3 size size"]) -> list[Reading]:
    """The nearest scene of each image, and how near it is."""
    return [reading for part in images.split(IMAGES_AT_ONCE) for reading in _read(part)] if len(images) else []


def _read(images: UInt8[Tensor, "n 3 size size"]) -> list[Reading]:
    scale = torch.from_numpy(np.linalg.pinv(cells_to_pixels(images.shape[-1])))
    cells = scale @ images.float() @ scale.T
    found = [nearest for ground in range(len(GROUND_PALETTE)) for nearest in _nearest_on(cells, ground)]
    best = torch.stack([nearest.error for nearest in found]).argmin(0)
    readings: dict[int, Reading] = {}
    for number, nearest in enumerate(found):
        rows = (best == number).nonzero()[:, 0]
        values, u = nearest.values[rows], nearest.u[rows].numpy()
        errors = _errors(images[rows], nearest.kind, values, u) if len(rows) else torch.empty(0)
        scenes = map(nearest.kind.scene, values.tolist())
        readings |= dict(zip(rows.tolist(), map(Reading, scenes, errors.tolist()), strict=True))
    return [readings[place] for place in range(len(images))]


def _nearest_on(cells: Tensor, ground: int) -> Iterator[_Nearest]:
    """The nearest scene of each kind on one ground."""
    colour = torch.from_numpy(GROUND_PALETTE[ground])
    difference = cells - colour[:, None, None]
    contrast = torch.from_numpy(PALETTE) - colour
    energy = contrast.square().sum(1)  # (colours,)
    share = torch.einsum("nchw,kc->nkhw", difference, contrast / energy[:, None])
    empty = difference.square().sum((1, 2, 3))
    for kind, nearest in _NEAREST.items():
        gain, values, u = nearest(share, energy)
        grounds = torch.full((len(cells), 1), ground)
        yield _Nearest(kind, empty - gain, torch.cat([values, grounds], 1), u)


def _errors(images: Tensor, kind: SceneKind, values: Tensor, u: NDArray[np.float64]) -> Tensor:
    size = images.shape[-1]
    difference = images.float() - draw(kind, values.numpy(), u, size).float()
    relative = difference.square().sum(1) / _contrast(kind, values, size)
    return F.avg_pool2d(relative[:, None], max(1, size // 4), stride=1).amax((1, 2, 3))


def _contrast(kind: SceneKind, values: Tensor, size: int) -> Tensor:
    """(n, 1 or size, 1 or size): squared distance between the ground and the object that is nearest to each pixel."""
    named = dict(zip(kind.factors, values.T, strict=True))
    palette, grounds = torch.from_numpy(PALETTE), torch.from_numpy(GROUND_PALETTE)[named["ground"]]
    first = (palette[named["colour"]] - grounds).square().sum(1)[:, None, None]
    if kind is not RELATION:
        return first
    second = (palette[named["other_colour"]] - grounds).square().sum(1)[:, None, None]
    far, below = torch.arange(size) >= size / 2, named["relation"][:, None, None] >= 2
    return torch.where(torch.where(below, far[:, None], far[None]), second, first)


Found = tuple[Tensor, Tensor, Tensor]  # by how much nearer than the empty ground; factors; what places objects


def _gains(share: Tensor, energy: Tensor, templates: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """(n, places, colours, templates): how much nearer than the ground alone an object is, by where it stands."""
    side = templates.shape[-1]
    corners = first_cells(np.array(places), side).tolist()
    windows = torch.stack([share[..., y : y + side, x : x + side].flatten(2) for x, y in corners], 1)
    flat = templates.flatten(1)
    return energy[:, None] * (2 * windows @ flat.T - flat.square().sum(1))


def _nearest_object(share: Tensor, energy: Tensor) -> Found:
    places, found = list(POSITIONS.values()), []
    for number, side in enumerate(SIDES.values()):
        templates = torch.from_numpy(covers(side))
        gains = _gains(share, energy, templates.flatten(0, 2), places)
        gain, at = gains.flatten(1).max(1)
        position, colour, *others = torch.unravel_index(at, (*gains.shape[1:3], *templates.shape[:3]))
        shape, rotation, fill = others
        size = torch.full_like(at, number)
        found.append((gain, torch.stack([shape, colour, size, rotation, fill, position], 1)))
    (small, values), (large, larger) = found
    gain, values = torch.maximum(small, large), torch.where((large > small)[:, None], larger, values)
    return gain, values, torch.zeros(len(share), PLACES**2)


def _nearest_pair(share: Tensor, energy: Tensor) -> Found:
    """The first object is the one at the left or at the top: "right of" and "below" are told from the other end."""
    last, lines = PLACES - 1, [(axis, place) for axis in range(2) for place in range(PLACES)]
    near = [(0, place) if axis == 0 else (place, 0) for axis, place in lines]
    far = [(last, place) if axis == 0 else (place, last) for axis, place in lines]
    gains = _gains(share, energy, torch.from_numpy(usual_covers(PAIRED)), near + far)
    single, which = gains.flatten(2).max(2)  # (n, places)
    gain, line = (single[:, : len(lines)] + single[:, len(lines) :]).max(1)
    axis, place = torch.tensor(lines)[line].T
    colour, shape = torch.unravel_index(which.gather(1, torch.stack([line, line + len(lines)], 1)), gains.shape[2:])
    values = torch.stack([shape[:, 0], colour[:, 0], 2 * axis, shape[:, 1], colour[:, 1]], 1)
    return gain, values, ((place + 0.5) / PLACES)[:, None].expand(-1, PLACES**2)


def _nearest_count(share: Tensor, energy: Tensor) -> Found:
    """Every place at which an object is nearer than the ground has one, at least one place and at most five."""
    places = [divmod(number, PLACES) for number in range(PLACES**2)]
    gains = _gains(share, energy, torch.from_numpy(usual_covers(COUNTED)), places)
    order = gains.sort(1, descending=True).values[:, : len(COUNTS)]
    sums = torch.cat([order[:, :1], order[:, 1:].clamp(min=0)], 1).sum(1)  # (n, colours, shapes)
    gain, at = sums.flatten(1).max(1)
    colour, shape = torch.unravel_index(at, sums.shape[1:])
    rows = torch.arange(len(share))
    count = (order[rows, 1:, colour, shape] > 0).sum(1)
    rank = gains[rows, :, colour, shape].argsort(1, descending=True).argsort(1)
    return gain, torch.stack([count, shape, colour], 1), rank / PLACES**2


_NEAREST = {OBJECT: _nearest_object, RELATION: _nearest_pair, COUNT: _nearest_count}
