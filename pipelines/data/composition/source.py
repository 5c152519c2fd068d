"""Objects whose factors are combined in pictures and captions, some combinations never in training.

It measures whether a model that has learned each factor puts them together as a caption says. A row of a split is a
pure function of (options, split, row).
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.random_streams import permutation_at, uniforms
from pipelines.data.composition.drawing import PLACES, draw
from pipelines.data.composition.scenes import COUNT, OBJECT, RELATION, Scene, SceneKind, Values
from pipelines.data.drawn_source import DrawnSource
from pipelines.data.source import Factors, RowMetadata, Split


class CompositionConfig(BaseModel):
    """`train`, `validation`, `test`: images in each split.

    `held_out_fraction`: share of the combinations that only the test split shows; as many others only the validation
    split shows, so that both measure what was never trained on (0: every split shows all). The combination is all
    factors of a scene of one object; shapes, colours and relation of a pair; number, shape and colour of a count.

    `relation_fraction`, `count_fraction`: shares of scenes of two objects in a relation, and of one to five equal ones;
    the others show one object. `paraphrases`: a caption has one of three forms, not always the same one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["composition"] = "composition"
    seed: int = 0
    train: int = Field(default=20_000, ge=1)
    validation: int = Field(default=1_000, ge=1)
    test: int = Field(default=1_000, ge=1)
    held_out_fraction: float = Field(default=0.1, ge=0, lt=0.5)
    relation_fraction: float = Field(default=0.0, ge=0, le=1)
    count_fraction: float = Field(default=0.0, ge=0, le=1)
    paraphrases: bool = False

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.relation_fraction + self.count_fraction > 1:
            raise ValueError(
                f"relation_fraction: {self.relation_fraction} and count_fraction: {self.count_fraction} are more than 1"
            )
        return self

    @property
    def _object_fraction(self) -> float:
        return round(1 - self.relation_fraction - self.count_fraction, 12)  # 0 where the others are all

    @property
    def fractions(self) -> dict[SceneKind, float]:
        """The share of each kind of scene, the rarest thing first."""
        return {COUNT: self.count_fraction, RELATION: self.relation_fraction, OBJECT: self._object_fraction}


def combination(kind: SceneKind, values: Values) -> NDArray[np.int64]:
    """The number of each scene's combination: one for all scenes that are held out together. A pair told from its other
    end ("right of" for "left of") is the same pair.
    """
    tellings = [values[:, : kind.combined]]
    if kind is RELATION:
        tellings.append(np.stack([values[:, 3], values[:, 4], values[:, 2] ^ 1, values[:, 0], values[:, 1]], 1))
    sizes = kind.sizes[: kind.combined]
    return np.stack([np.ravel_multi_index(tuple(told.T), sizes) for told in tellings]).min(0)


def splits_of(kind: SceneKind, values: Values, seed: int, held_out_fraction: float) -> NDArray[np.str_]:
    """The one split that shows each scene, where a share of them is held out."""
    u = uniforms((seed, "held out", kind.name), combination(kind, values), 1)[:, 0]
    names = np.array(["test", "validation", "train"])
    return names[np.searchsorted([held_out_fraction, 2 * held_out_fraction], u, side="right")]


def is_held_out(scene: Scene, config: CompositionConfig) -> bool:
    """Whether training never shows the combination of this scene."""
    fraction = config.held_out_fraction
    split = splits_of(scene.kind, np.array([scene.values]), config.seed, fraction)[0]
    return fraction > 0 and split != "train"


@lru_cache(maxsize=64)
def shown(kind: SceneKind, seed: int, held_out_fraction: float, split: Split) -> NDArray[np.int64]:
    """The numbers of the scenes that a split shows. The objects of a pair differ."""
    numbers = np.arange(len(kind))
    values = kind.values(numbers)
    keep = np.ones(len(numbers), bool)
    if kind is RELATION:
        keep &= (values[:, [0, 1]] != values[:, [3, 4]]).any(1)
    if held_out_fraction:
        keep &= splits_of(kind, values, seed, held_out_fraction) == split
    return numbers[keep]


class Composition(DrawnSource):
    """A split of the compositions."""

    classes: list[str] | None = None

    def __init__(self, config: CompositionConfig, split: Split, size: int):
        super().__init__(config, split, size)
        self.config = config
        self.provenance: dict[str, Any] = {"kind": "composition", "split": split, "seed": config.seed}
        self.fingerprint: str | None = f"{config.model_dump_json()} {split} {size}"
        for kind, fraction in config.fractions.items():
            if fraction and not len(self._shown(kind)):
                raise UserError(
                    f"data.source.held_out_fraction: {config.held_out_fraction} leaves the {split} split no scene of "
                    f"the kind {kind.name}; expected more, or 0"
                )

    def parts(self, rows: NDArray[np.int64]) -> Iterator[tuple[SceneKind, NDArray[np.int64], Values]]:
        """The kinds of scenes among the rows: which rows (as places in `rows`), and their factors.

        Of the first n rows a share s shows a kind, to within one row, wherever n lies: rows are counted as Bresenham's
        line counts pixels, and those that are left go to the next kind.
        """
        left, numbers, rest = np.arange(len(rows)), np.asarray(rows, dtype=np.int64), 1.0
        for kind, fraction in self.config.fractions.items():
            share = fraction / rest if fraction else 0.0
            share = 1.0 if share > 1 - 1e-9 else share  # the last kind has all that is left, whatever was rounded
            before, after = (np.floor(n * share).astype(np.int64) for n in (numbers, numbers + 1))
            here = after > before
            if here.any():
                yield kind, left[here], kind.values(self._numbers(before[here], kind))
            left, numbers, rest = left[~here], (numbers - before)[~here], rest - fraction

    def _numbers(self, places: NDArray[np.int64], kind: SceneKind) -> NDArray[np.int64]:
        """The scenes at these places among the rows of a kind: all that are shown, in random order, and then again."""
        found, order = np.empty_like(places), self._shown(kind)
        turns, places = np.divmod(places, len(order))
        for turn in np.unique(turns):
            here, key = turns == turn, (self.config.seed, "composition", kind.name, self.split, int(turn))
            found[here] = order[permutation_at(key, len(order), places[here])]
        return found

    def _shown(self, kind: SceneKind) -> NDArray[np.int64]:
        return shown(kind, self.config.seed, self.config.held_out_fraction, self.split)

    def scenes(self, rows: Sequence[int]) -> list[Scene]:
        found: dict[int, Scene] = {}
        for kind, places, values in self.parts(np.asarray(rows, dtype=np.int64)):
            found |= dict(zip(places.tolist(), map(kind.scene, values.tolist()), strict=True))
        return [found[place] for place in range(len(rows))]

    def metadata(self, rows: Sequence[int], labels: Int64[Tensor, " n"] | None = None) -> list[RowMetadata]:
        form = (self._uniforms("caption", rows, 1)[:, 0] * 3 * self.config.paraphrases).astype(np.int64)
        return [
            RowMetadata(
                f"composition-{self.split}-{row:06d}",
                None,
                scene.captions[at],
                {"scene": scene.kind.name, **scene.factors},
            )
            for row, scene, at in zip(rows, self.scenes(rows), form.tolist(), strict=True)
        ]

    def labels(self, rows: Sequence[int]) -> None:
        return None

    def factors(self, rows: Sequence[int]) -> Factors | None:
        """Of scenes with one object."""
        if self.config.relation_fraction or self.config.count_fraction:
            return None
        ((kind, _, values),) = self.parts(np.asarray(rows, dtype=np.int64))
        return Factors(tuple(kind.factors), kind.sizes, values)

    def pixels(self, rows: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 3 size size"]:
        images = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        u = self._uniforms("places", rows.tolist(), PLACES**2)
        for kind, places, values in self.parts(rows.numpy()):
            images[torch.from_numpy(places)] = draw(kind, values, u[places], self.shape[1])
        return images

    def _uniforms(self, stream: str, rows: Sequence[int], width: int) -> NDArray[np.float64]:
        return uniforms((self.config.seed, "composition", stream, self.split), np.asarray(rows, dtype=np.int64), width)


class CompositionSplits:
    """All splits of the compositions, drawn at `size` pixels."""

    def __init__(self, config: CompositionConfig, size: int):
        self.config, self.size = config, size

    def find(self, split: Split) -> Composition:
        return Composition(self.config, split, self.size)
