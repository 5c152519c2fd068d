"""One id space for everything that the prior reads: a condition, then codes."""

import math
from collections.abc import Sequence
from itertools import accumulate

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


class Segment(BaseModel):
    """Consecutive positions of one kind: a label, a caption, or the codes of an image.

    Each position holds a value in [0, size). Positions run through `shape` in raster order and, within a cell, through
    the quantizers. Every quantizer has `size` ids of its own. With `pads` a position without a value holds a pad. Each
    position has a pad of its own; the ids of pads come after those of all values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: PositiveInt
    shape: tuple[PositiveInt, ...] = Field(default=(1,), min_length=1)
    num_quantizers: PositiveInt = 1
    pads: bool = False

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes that positions run through, the last one fastest; (h, w, q) for the codes of an image."""
        return (*self.shape, self.num_quantizers)

    @property
    def length(self) -> int:
        """Number of positions."""
        return math.prod(self.axes)

    @property
    def num_ids(self) -> int:
        return self.size * self.num_quantizers + (self.length if self.pads else 0)


class Vocabulary(BaseModel):
    """An ordered tuple of segments: first the condition, then the codes, which the prior draws one after the other: one
    segment, or one for each level of codes, coarse to fine.

    Ids run through the segments in order. The null condition stands for an absent one. Of a caption it is the one that
    is all pads; of a segment without pads it is the largest value: an unconditional prior has a condition segment of
    size 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    segments: tuple[Segment, ...] = Field(min_length=2)

    @classmethod
    def of_labels_and_codes(
        cls, num_codes: int, grid: tuple[int, int, int], num_classes: int | None = None
    ) -> "Vocabulary":
        """One of `num_classes` labels (None: the prior is unconditional), then an (h, w, q) grid of codes."""
        return cls.of_labels_and_levels([(num_codes, grid)], num_classes)

    @classmethod
    def of_labels_and_levels(
        cls, levels: Sequence[tuple[int, tuple[int, int, int]]], num_classes: int | None = None
    ) -> "Vocabulary":
        """A label as above, then levels of codes, coarse to fine: number of codes and (h, w, q) grid of each."""
        return cls(segments=(Segment(name="label", size=(num_classes or 0) + 1), *_code_segments(levels)))

    @classmethod
    def of_caption_and_levels(
        cls, levels: Sequence[tuple[int, tuple[int, int, int]]], num_words: int, caption_length: int
    ) -> "Vocabulary":
        """A caption of `caption_length` words or pads, out of `num_words` words, then levels of codes as above."""
        caption = Segment(name="caption", size=num_words, shape=(caption_length,), pads=True)
        return cls(segments=(caption, *_code_segments(levels)))

    @model_validator(mode="after")
    def _check_condition(self) -> "Vocabulary":
        if self.condition.num_quantizers != 1:
            raise ValueError(f"the condition has one id per value, got {self.condition.num_quantizers} quantizers")
        if padded := [segment.name for segment in self.codes if segment.pads]:
            raise ValueError(f"codes have no pads, got them in {', '.join(padded)}")
        return self

    @property
    def condition(self) -> Segment:
        return self.segments[0]

    @property
    def codes(self) -> tuple[Segment, ...]:
        """The levels of codes, coarse to fine."""
        return self.segments[1:]

    @property
    def code_axes(self) -> tuple[int, ...]:
        """The shape of the codes of one image: (h, w, q) of one level, (n,) of several."""
        return self.codes[0].axes if len(self.codes) == 1 else (self.code_length,)

    @property
    def code_length(self) -> int:
        """Number of codes of an image."""
        return sum(segment.length for segment in self.codes)

    @property
    def num_code_ids(self) -> int:
        """Number of ids of codes, which are the last ones."""
        return sum(segment.num_ids for segment in self.codes)

    @property
    def most_codes(self) -> int:
        """The size of the largest level: how many logits a position has at most."""
        return max(segment.size for segment in self.codes)

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """How many codes each position of the codes chooses from."""
        return tuple(segment.size for segment in self.codes for _ in range(segment.length))

    @property
    def code_tables(self) -> tuple[int, ...]:
        """At each position of the codes, which table of codes it chooses from: each quantizer of each level has one."""
        starts = accumulate((segment.num_quantizers for segment in self.codes[:-1]), initial=0)
        return tuple(
            start + position % segment.num_quantizers
            for segment, start in zip(self.codes, starts, strict=True)
            for position in range(segment.length)
        )

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """The number of codes in each table of `code_tables`."""
        return tuple(segment.size for segment in self.codes for _ in range(segment.num_quantizers))

    @property
    def conditional(self) -> bool:
        """Whether there is any condition beside the null condition."""
        return self.num_conditions > 0

    @property
    def num_conditions(self) -> int:
        """How many values a position of the condition may hold, beside what stands for an absent one."""
        return self.condition.size - (not self.condition.pads)

    @property
    def num_classes(self) -> int | None:
        """Number of labels; None for an unconditional prior and for one that reads captions."""
        one_of_several = self.conditional and self.condition.length == 1 and not self.condition.pads
        return self.num_conditions if one_of_several else None

    @property
    def null_condition(self) -> tuple[int, ...]:
        """The id that stands for an absent value at each position of the condition; all of them: the null condition."""
        if not self.condition.pads:
            return (self.num_conditions,) * self.condition.length
        return tuple(range(self.condition.size, self.condition.num_ids))

    @property
    def size(self) -> int:
        """Number of ids."""
        return sum(segment.num_ids for segment in self.segments)

    @property
    def length(self) -> int:
        """Number of positions, those of the condition included."""
        return sum(segment.length for segment in self.segments)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The id of value 0 at each position."""
        starts = accumulate((segment.num_ids for segment in self.segments[:-1]), initial=0)
        return tuple(
            start + position % segment.num_quantizers * segment.size
            for segment, start in zip(self.segments, starts, strict=True)
            for position in range(segment.length)
        )

    @property
    def code_offsets(self) -> tuple[int, ...]:
        """The id of code 0 at each position of the codes."""
        return self.offsets[self.condition.length :]

    @property
    def id_ranges(self) -> tuple[range, ...]:
        """The ids of the values that each position may take; a caption may also take its pads (`null_condition`)."""
        sizes = [segment.size for segment in self.segments for _ in range(segment.length)]
        return tuple(range(offset, offset + size) for offset, size in zip(self.offsets, sizes, strict=True))

    @property
    def first_predicted_id(self) -> int:
        """No position predicts the ids below this one. The first position is given, and a label has no other."""
        return self.condition.num_ids if self.condition.length == 1 else 0


def _code_segments(levels: Sequence[tuple[int, tuple[int, int, int]]]) -> list[Segment]:
    """Of each level, coarse to fine: number of codes and (h, w, q) grid."""
    names = ["codes"] if len(levels) == 1 else [f"codes {i}" for i in range(1, len(levels) + 1)]
    return [
        Segment(name=name, size=size, shape=grid[:2], num_quantizers=grid[2])
        for name, (size, grid) in zip(names, levels, strict=True)
    ]
