"""Images drawn on demand, with label, caption and ground truth: one or two plain shapes on a plain ground.

Every scene is a pure function of (seed, split, index). Positions are fractions of the image, from the top left. In a
scene of two objects the first is large, the second small and of another colour; they never touch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from pipelines.base.random_streams import uniforms
from pipelines.data.drawn_source import DrawnSource
from pipelines.data.source import Factors, RowMetadata, Split

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 39, 40),
    "green": (34, 150, 60),
    "blue": (31, 90, 214),
    "yellow": (240, 190, 0),
    "purple": (150, 60, 190),
    "black": (30, 30, 30),
}
GROUNDS = {
    "white": (248, 248, 248),
    "pale grey": (206, 206, 206),
    "pale pink": (250, 216, 224),
    "pale blue": (206, 226, 250),
}
RADII = {"small": 0.15, "large": 0.22}  # of the image's side
CLASSES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]

# Geometry at radius 1: about equal areas. Half side of the square, circumradius of the triangle, half length and half
# width of the cross's bars. The origin of each shape is its centroid.
SQUARE, TRIANGLE, BAR, BAR_WIDTH = 0.89, 1.3, 1.08, 0.40
SIDE = np.sqrt(0.75)
# Extent of each shape from its origin to the left and right, up, down.
EXTENTS = np.array(
    [(1.0, 1.0, 1.0), (SQUARE, SQUARE, SQUARE), (TRIANGLE * SIDE, TRIANGLE, TRIANGLE / 2), (BAR, BAR, BAR)]
)
MARGIN, GAP = 0.03, 0.05
TRIES = 16

_PALETTE = np.array(list(COLOURS.values()), np.float32)
_GROUNDS = np.array(list(GROUNDS.values()), np.uint8)


class ShapesConfig(BaseModel):
    """`train`, `validation`, `test`: images in each split. `two_object_fraction`: share of scenes with two objects.
    `positions`: objects stand in so many columns and rows, the same for every shape and size, so that all factors of a
    scene are independent (None: anywhere); it needs scenes of one object.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["shapes"] = "shapes"
    seed: int = 0
    train: int = Field(default=20_000, ge=1)
    validation: int = Field(default=1_000, ge=1)
    test: int = Field(default=1_000, ge=1)
    two_object_fraction: float = Field(default=0.5, ge=0, le=1)
    positions: int | None = Field(default=None, ge=1, le=1024)

    @model_validator(mode="after")
    def _one_object_has_a_position(self) -> Self:
        if self.positions is not None and self.two_object_fraction:
            raise ValueError(f"positions: {self.positions} needs two_object_fraction: 0")
        return self


@dataclass(frozen=True)
class SceneObject:
    shape: str
    colour: str
    size: str
    x: float
    y: float

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What an image shows; `objects` are ordered by size, the primary one first."""

    ground: str
    objects: tuple[SceneObject, ...]

    @property
    def label(self) -> int:
        """Class of the primary object, an index into CLASSES."""
        return CLASSES.index(f"{self.objects[0].colour} {self.objects[0].shape}")

    @property
    def caption(self) -> str:
        return " and ".join(f"a {thing}" for thing in self.objects) + f" on a {self.ground} ground"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scenes:
    """n scenes as arrays; the object axis is (primary, second), `count` says how many are there. Indices are into
    SHAPES, COLOURS, GROUNDS; `radius` and `centre` (x, y of the centroid) are fractions of the image's side. `position`
    (column, row) is that of the primary object where positions are counted.
    """

    ground: NDArray[np.int64]
    count: NDArray[np.int64]
    shape: NDArray[np.int64]
    colour: NDArray[np.int64]
    radius: NDArray[np.float64]
    centre: NDArray[np.float64]
    position: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ground)

    def scene(self, i: int) -> Scene:
        shapes, colours, grounds = SHAPES, tuple(COLOURS), tuple(GROUNDS)
        objects = (
            SceneObject(
                shapes[self.shape[i, j]],
                colours[self.colour[i, j]],
                "large" if self.radius[i, j] == RADII["large"] else "small",
                round(float(self.centre[i, j, 0]), 4),
                round(float(self.centre[i, j, 1]), 4),
            )
            for j in range(self.count[i])
        )
        return Scene(grounds[self.ground[i]], tuple(objects))


def sample_scenes(config: ShapesConfig, split: Split, indices: NDArray[np.int64]) -> Scenes:
    """The scenes of these rows of a split; row i is the same whatever the other rows are."""
    u = uniforms((config.seed, "shapes", split), indices, 7 + 4 * TRIES)
    pick = lambda column, choices: (u[:, column] * choices).astype(np.int64)  # noqa: E731
    two = u[:, 0] < config.two_object_fraction
    shape = np.stack([pick(1, len(SHAPES)), pick(2, len(SHAPES))], 1)
    first = pick(3, len(COLOURS))
    colour = np.stack([first, (first + 1 + pick(4, len(COLOURS) - 1)) % len(COLOURS)], 1)
    large = np.stack([two | (u[:, 5] < 0.5), np.zeros_like(two)], 1)
    radius = np.where(large, RADII["large"], RADII["small"])
    places, position = u[:, 7:].reshape(-1, TRIES, 2, 2), None
    if config.positions is None:
        centre = _place(places, EXTENTS[shape] * radius[..., None], two)
    else:
        position = (places[:, 0, 0] * config.positions).astype(np.int64)
        centre = np.stack([_centre_of(position, config.positions)] * 2, 1)
    return Scenes(pick(6, len(GROUNDS)), 1 + two, shape, colour, radius, centre, position)


def _centre_of(position: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Centres (n, 2) of columns and rows (n, 2) of the part of the image where every shape of every size has room."""
    side, up, down = EXTENTS.max(0) * max(RADII.values())
    low, high = MARGIN + np.array([side, up]), 1 - MARGIN - np.array([side, down])
    return low + (position + 0.5) / count * (high - low)


def _place(u: NDArray[np.float64], extents: NDArray[np.float64], two: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centres (n, 2, 2): the first of the tries u (n, tries, object, xy) whose boxes keep their distance; where none
    does, opposite corners. Scenes of one object take their first try.
    """
    side, up, down = np.moveaxis(extents, -1, 0)
    low = MARGIN + np.stack([side, up], -1)
    high = 1 - MARGIN - np.stack([side, down], -1)
    u[:, -1] = np.array([[0.0, 0.0], [1.0, 1.0]])
    tried = low[:, None] + u * (high - low)[:, None]
    apart = tried[:, :, 1] - tried[:, :, 0]
    beside = np.abs(apart[..., 0]) >= side.sum(1)[:, None] + GAP
    below = apart[..., 1] >= (down[:, 0] + up[:, 1])[:, None] + GAP
    above = -apart[..., 1] >= (up[:, 0] + down[:, 1])[:, None] + GAP
    chosen = np.where(two, np.argmax(beside | below | above, axis=1), 0)
    return tried[np.arange(len(tried)), chosen]


def coverage(shape: int, radius: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]) -> np.ndarray:
    """(n, h, w) share of each pixel that a shape covers: half a pixel minus the signed distance to its outline.

    `radius` (n,), and where the pixels' centres lie from the shape's: `x` (n, w), `y` (n, h); all in pixels.
    """
    x, y, r = x[:, None, :], y[:, :, None], radius[:, None, None]
    match SHAPES[shape]:
        case "circle":
            distance = np.sqrt(x * x + y * y) - r
        case "square":
            distance = np.maximum(np.abs(x), np.abs(y)) - SQUARE * r
        case "triangle":
            distance = np.maximum(y, np.abs(x) * np.float32(SIDE) - 0.5 * y) - TRIANGLE / 2 * r
        case _:
            x, y, bar, width = np.abs(x), np.abs(y), BAR * r, BAR_WIDTH * r
            distance = np.minimum(np.maximum(x - bar, y - width), np.maximum(x - width, y - bar))
    return np.clip(0.5 - distance, 0, 1)


def draw(scenes: Scenes, size: int) -> UInt8[Tensor, "n 3 size size"]:
    """Antialiased images of the scenes. Objects never touch, so each is painted in a window of its own."""
    pictures = np.empty((len(scenes), size, size, 3), np.uint8)
    pictures[:] = _GROUNDS[scenes.ground][:, None, None]
    for j in range(2):
        for shape, reach in enumerate(EXTENTS.max(1)):
            for radius in RADII.values():
                here = (scenes.shape[:, j] == shape) & (scenes.radius[:, j] == radius) & (scenes.count > j)
                if len(rows := np.flatnonzero(here)):
                    _paint(pictures, rows, scenes.centre[rows, j], scenes.colour[rows, j], shape, radius, reach)
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))


def _paint(
    pictures: NDArray[np.uint8],
    rows: NDArray[np.int64],
    centre: NDArray[np.float64],
    colour: NDArray[np.int64],
    shape: int,
    radius: float,
    reach: float,
) -> None:
    """Paint objects of one shape and radius, whose farthest point lies `reach` radii from the centroid, into `rows`."""
    size = pictures.shape[1]
    window = min(size, int(np.ceil(2 * reach * radius * size)) + 2)
    corner = np.clip(np.floor(centre * size - window / 2 + 0.5).astype(np.int64), 0, size - window)
    pixel = corner[:, None] + np.arange(window)[:, None]  # (n, window, xy)
    offset = (pixel + 0.5 - centre[:, None] * size).astype(np.float32)
    radii = np.full(len(rows), radius * size, np.float32)
    cover = coverage(shape, radii, offset[..., 0], offset[..., 1])[..., None]
    place = rows[:, None, None], pixel[:, :, None, 1], pixel[:, None, :, 0]
    under = pictures[place].astype(np.float32)
    pictures[place] = np.rint(under + cover * (_PALETTE[colour][:, None, None] - under)).astype(np.uint8)


class Shapes(DrawnSource):
    """A split of the shapes."""

    def __init__(self, config: ShapesConfig, split: Split, size: int):
        super().__init__(config, split, size)
        self.config = config
        self.classes: list[str] | None = list(CLASSES)
        self.provenance: dict[str, Any] = {"kind": "shapes", "split": split, "seed": config.seed}
        self.fingerprint: str | None = f"{config.model_dump_json(exclude_none=True)} {split} {size}"

    def scenes(self, rows: Sequence[int]) -> Scenes:
        return sample_scenes(self.config, self.split, np.asarray(rows, dtype=np.int64))

    def metadata(self, rows: Sequence[int], labels: Int64[Tensor, " n"] | None = None) -> list[RowMetadata]:
        scenes = self.scenes(rows)
        found = (scenes.scene(i) for i in range(len(scenes)))
        return [
            RowMetadata(f"shapes-{self.split}-{row:06d}", scene.label, scene.caption, scene.as_dict())
            for row, scene in zip(rows, found, strict=True)
        ]

    def labels(self, rows: Sequence[int]) -> Int64[Tensor, " n"]:
        scenes = self.scenes(rows)
        return torch.from_numpy(scenes.shape[:, 0] * len(COLOURS) + scenes.colour[:, 0])

    def factors(self, rows: Sequence[int]) -> Factors | None:
        """Of scenes with one object; its column and row where positions are counted."""
        if self.config.two_object_fraction:
            return None
        scenes, positions = self.scenes(rows), self.config.positions
        large = (scenes.radius[:, 0] == RADII["large"]).astype(np.int64)
        columns = [
            ("shape", len(SHAPES), scenes.shape[:, 0]),
            ("colour", len(COLOURS), scenes.colour[:, 0]),
            ("size", len(RADII), large),
            ("ground", len(GROUNDS), scenes.ground),
        ]
        if positions is not None and scenes.position is not None:
            columns += [("x", positions, scenes.position[:, 0]), ("y", positions, scenes.position[:, 1])]
        names, sizes, values = zip(*columns, strict=True)
        return Factors(names, sizes, np.stack(values, 1))

    def pixels(self, rows: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 3 size size"]:
        return draw(self.scenes(rows.tolist()), self.shape[1])


class ShapesSplits:
    """All splits of the shapes, drawn at `size` pixels."""

    def __init__(self, config: ShapesConfig, size: int):
        self.config, self.size = config, size

    def find(self, split: Split) -> Shapes:
        return Shapes(self.config, split, self.size)
