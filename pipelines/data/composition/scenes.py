"""What a picture of the `composition` data can show: kinds of scenes, the factors of each, and captions in words.

A scene of one object is told by its factors, so that a caption has one picture. Two objects in a relation, and several
equal objects, are told by fewer: they are solid and of one size, point the usual way, and where they stand is drawn.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHAPES = ("arrow", "triangle", "heart", "crown", "house", "T")
COLOURS = {
    "red": (225, 30, 35),
    "yellow": (250, 205, 0),
    "green": (20, 150, 50),
    "cyan": (0, 190, 225),
    "blue": (35, 65, 215),
    "pink": (240, 60, 190),
}
GROUNDS = {"white": (250, 250, 250), "grey": (180, 180, 180), "black": (15, 15, 15)}
SIZES = ("small", "large")
FILLS = ("solid", "outlined", "striped")
ROTATIONS = ("up", "right", "down", "left")  # where an object points: a quarter turn each, clockwise
# Column and row of an object's box: 0 at the left or top edge, 1 in the middle, 2 at the right or bottom edge.
POSITIONS = {"top left": (0, 0), "top right": (2, 0), "centre": (1, 1), "bottom left": (0, 2), "bottom right": (2, 2)}
RELATIONS = ("left of", "right of", "above", "below")  # each beside its opposite
COUNTS = ("one", "two", "three", "four", "five")

Values = NDArray[np.int64]  # (n, factors): one number a factor


@dataclass(frozen=True, eq=False)
class SceneKind:
    """Scenes with the same `factors` (name: its values in words). `templates` are captions, the usual one first. The
    first `combined` factors are the combination that training is shown or not.
    """

    name: str
    factors: Mapping[str, Sequence[str]]
    templates: tuple[str, ...]
    combined: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(words) for words in self.factors.values())

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def values(self, numbers: NDArray[np.int64]) -> Values:
        """The factors of scenes by their number, 0 … len - 1."""
        return np.stack(np.unravel_index(numbers, self.sizes), -1).astype(np.int64)

    def scene(self, values: Sequence[int]) -> "Scene":
        named = zip(self.factors.items(), values, strict=True)
        return Scene(self, {name: words[value] for (name, words), value in named})

    def parse(self, caption: str) -> "Scene | None":
        """The scene that a caption of any template tells; None for other texts."""
        for template in self.templates:
            if found := re.fullmatch(self._expression(template), " ".join(caption.split()), re.IGNORECASE):
                said = {name: text.lower() for name, text in found.groupdict().items()}
                return Scene(
                    self,
                    {name: next(w for w in words if w.lower() == said[name]) for name, words in self.factors.items()},
                )
        return None

    def _expression(self, template: str) -> str:
        groups = {name: f"(?P<{name}>{'|'.join(words)})" for name, words in self.factors.items()}
        return template.format_map({**groups, "plural": "s?"})


@dataclass(frozen=True)
class Scene:
    """One scene: the value of each factor of its kind, in words."""

    kind: SceneKind
    factors: Mapping[str, str]

    @property
    def values(self) -> tuple[int, ...]:
        return tuple(tuple(words).index(self.factors[name]) for name, words in self.kind.factors.items())

    @property
    def caption(self) -> str:
        return self.captions[0]

    @property
    def captions(self) -> tuple[str, ...]:
        """The usual caption, and its paraphrases."""
        words = {**self.factors, "plural": "" if self.factors.get("count") == "one" else "s"}
        return tuple(template.format_map(words) for template in self.kind.templates)

    @property
    def equivalents(self) -> "tuple[Scene, ...]":
        """All scenes with the same pictures: this one, and a pair as told from its other end."""
        if "relation" not in self.factors:
            return (self,)
        told, names = self.factors, ("shape", "colour", "other_shape", "other_colour")
        turned = dict(zip(names, (told[name] for name in (*names[2:], *names[:2])), strict=True))
        relation = RELATIONS[RELATIONS.index(told["relation"]) ^ 1]
        return self, Scene(self.kind, {**told, **turned, "relation": relation})


OBJECT = SceneKind(
    "object",
    {
        "shape": SHAPES,
        "colour": tuple(COLOURS),
        "size": SIZES,
        "rotation": ROTATIONS,
        "fill": FILLS,
        "position": tuple(POSITIONS),
        "ground": tuple(GROUNDS),
    },
    (
        "a {size} {colour} {fill} {shape} pointing {rotation}, in the {position}, on a {ground} ground",
        "on a {ground} ground, in the {position}, a {size} {fill} {shape} in {colour} that points {rotation}",
        "a {ground} ground with a {size} {shape} in the {position}: {fill}, {colour}, pointing {rotation}",
    ),
    combined=7,
)
RELATION = SceneKind(
    "relation",
    {
        "shape": SHAPES,
        "colour": tuple(COLOURS),
        "relation": RELATIONS,
        "other_shape": SHAPES,
        "other_colour": tuple(COLOURS),
        "ground": tuple(GROUNDS),
    },
    (
        "a {colour} {shape} {relation} a {other_colour} {other_shape} on a {ground} ground",
        "on a {ground} ground, a {colour} {shape} that is {relation} a {other_colour} {other_shape}",
        "a {ground} ground with a {colour} {shape} {relation} a {other_colour} {other_shape}",
    ),
    combined=5,
)
COUNT = SceneKind(
    "count",
    {"count": COUNTS, "shape": SHAPES, "colour": tuple(COLOURS), "ground": tuple(GROUNDS)},
    (
        "{count} {colour} {shape}{plural} on a {ground} ground",
        "on a {ground} ground, {count} {colour} {shape}{plural}",
        "a {ground} ground with {count} {colour} {shape}{plural}",
    ),
    combined=3,
)
KINDS = (OBJECT, RELATION, COUNT)


def parse_caption(caption: str) -> Scene | None:
    """The scene that a caption tells, whatever its case and spaces; None for a text that is no caption of a scene."""
    return next((scene for kind in KINDS if (scene := kind.parse(caption))), None)
