"""Reading the scene of a `composition` picture back from its pixels, also of a reconstructed or a generated one.

The scene is the one whose picture is nearest, in squared error, to the image: the nearest of all, since the boxes in
which objects stand never overlap, so that the error of a picture is a sum over boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from pipelines.data.composition.drawing import (
    BOX,
    GROUND_PALETTE,
    PALETTE,
    PLACES,
    TINY_BOX,
    corner,
    covers,
    draw,
    usual_covers,
)
from pipelines.data.composition.scenes import COUNT, COUNTS, OBJECT, POSITIONS, RELATION, Scene, SceneKind

# The largest error of a legible image. Real pictures have 0. At 32 pixels the worst of 1,500 blurred to a PSNR of 28 dB
# has 0.077, a shape blurred to a blob 0.089, a filled hole 0.12, a stain of 4 x 4 pixels 0.25, a missing object more.
TOLERANCE = 0.08
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
    """Of the scenes of one kind the nearest to each of n images: by how much it is nearer than the empty ground, its
    factors but for the ground, and what `draw` places its objects by.
    """

    kind: SceneKind
    gain: Float[Tensor, " n"]
    values: Int64[Tensor, "n factors"]
    u: Float[Tensor, "n 9"]


def read_scenes(images: UInt8[Tensor, "n 3 size size"]) -> list[Reading]:
    """The nearest scene of each image, and how near it is."""
    return [reading for part in images.split(IMAGES_AT_ONCE) for reading in _read(part)] if len(images) else []


def _read(images: UInt8[Tensor, "n 3 size size"]) -> list[Reading]:
    grounds = torch.from_numpy(GROUND_PALETTE)
    median = images.flatten(2).float().median(-1).values
    ground = torch.cdist(median, grounds).argmin(1)
    contrast = torch.from_numpy(PALETTE) - grounds[ground][:, None]  # (n, colours, 3)
    energy = contrast.square().sum(-1)
    share = torch.einsum("nchw,nkc->nkhw", images.float() - grounds[ground][..., None, None], contrast)
    share /= energy[..., None, None]
    found = [nearest(share, energy) for nearest in (_nearest_object, _nearest_pair, _nearest_count)]
    best = torch.stack([nearest.gain for nearest in found]).argmax(0)
    readings: dict[int, Reading] = {}
    for number, nearest in enumerate(found):
        rows = (best == number).nonzero()[:, 0]
        values = torch.cat([nearest.values, ground[:, None]], 1)[rows]
        errors = _errors(images[rows], nearest, values.numpy(), nearest.u[rows].numpy(), energy[rows])
        scenes = map(nearest.kind.scene, values.tolist())
        readings |= dict(zip(rows.tolist(), map(Reading, scenes, errors.tolist()), strict=True))
    return [readings[place] for place in range(len(images))]


def _errors(images: Tensor, nearest: _Nearest, values: np.ndarray, u: np.ndarray, energy: Tensor) -> Tensor:
    size = images.shape[-1]
    difference = images.float() - draw(nearest.kind, values, u, size).float()
    relative = difference.square().sum(1) / _contrast(nearest.kind, torch.from_numpy(values), energy, size)
    return F.avg_pool2d(relative[:, None], max(1, size // 4), stride=1).amax((1, 2, 3))


def _contrast(kind: SceneKind, values: Tensor, energy: Tensor, size: int) -> Tensor:
    """(n, 1 or size, 1 or size): the energy of the object that is nearest to each pixel."""
    named = dict(zip(kind.factors, values.T, strict=True))
    first = energy.gather(1, named["colour"][:, None])[..., None]
    if kind is not RELATION:
        return first
    second = energy.gather(1, named["other_colour"][:, None])[..., None]
    far, below = torch.arange(size) >= size / 2, named["relation"][:, None, None] >= 2
    return torch.where(torch.where(below, far[:, None], far[None]), second, first)


def _gains(share: Tensor, energy: Tensor, templates: Tensor, places: Sequence[tuple[int, int]], box: int) -> Tensor:
    """(n, places, colours, templates): how much nearer than the ground an object is, by the place of its box."""
    size = share.shape[-1]
    corners = corner(np.array(places), box, size).tolist()
    windows = torch.stack([share[..., y : y + box, x : x + box].flatten(2) for x, y in corners], 1)
    flat = templates.flatten(1)
    return energy[:, None, :, None] * (2 * windows @ flat.T - flat.square().sum(1))


def _nearest_object(share: Tensor, energy: Tensor) -> _Nearest:
    size = share.shape[-1]
    templates = torch.from_numpy(covers(size)).flatten(0, 3)
    gains = _gains(share, energy, templates, list(POSITIONS.values()), size // BOX)
    gain, at = gains.flatten(1).max(1)
    position, colour, *rest = torch.unravel_index(at, (*gains.shape[1:3], *covers(size).shape[:4]))
    shape, scale, rotation, fill = rest
    values = torch.stack([shape, colour, scale, rotation, fill, position], 1)
    return _Nearest(OBJECT, gain, values, torch.zeros(len(share), PLACES**2))


def _nearest_pair(share: Tensor, energy: Tensor) -> _Nearest:
    """The first object is the one at the left or at the top: "right of" and "below" are told from the other end."""
    size, last = share.shape[-1], PLACES - 1
    templates = torch.from_numpy(usual_covers(size, tiny=False))
    lines = [(0, place) for place in range(PLACES)] + [(1, place) for place in range(PLACES)]  # axis, row or column
    near = [(0, place) if axis == 0 else (place, 0) for axis, place in lines]
    far = [(last, place) if axis == 0 else (place, last) for axis, place in lines]
    gains = _gains(share, energy, templates, near + far, size // BOX)
    single, which = gains.flatten(2).max(2)  # (n, places)
    gain, line = (single[:, : len(lines)] + single[:, len(lines) :]).max(1)
    axis, place = torch.tensor(lines)[line].T
    colour, shape = torch.unravel_index(which.gather(1, torch.stack([line, line + len(lines)], 1)), gains.shape[2:])
    values = torch.stack([shape[:, 0], colour[:, 0], 2 * axis, shape[:, 1], colour[:, 1]], 1)
    return _Nearest(RELATION, gain, values, ((place + 0.5) / PLACES)[:, None].expand(-1, PLACES**2))


def _nearest_count(share: Tensor, energy: Tensor) -> _Nearest:
    """Every place at which an object is nearer than the ground has one, at least one place and at most five."""
    size = share.shape[-1]
    places = [divmod(number, PLACES) for number in range(PLACES**2)]
    gains = _gains(share, energy, torch.from_numpy(usual_covers(size, tiny=True)), places, size // TINY_BOX)
    order = gains.sort(1, descending=True).values[:, : len(COUNTS)]
    sums = torch.cat([order[:, :1], order[:, 1:].clamp(min=0)], 1).sum(1)  # (n, colours, shapes)
    gain, at = sums.flatten(1).max(1)
    colour, shape = torch.unravel_index(at, sums.shape[1:])
    rows = torch.arange(len(share))
    count = (order[rows, 1:, colour, shape] > 0).sum(1)
    rank = gains[rows, :, colour, shape].argsort(1, descending=True).argsort(1)
    return _Nearest(COUNT, gain, torch.stack([count, shape, colour], 1), rank / PLACES**2)
