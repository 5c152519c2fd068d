"""Numbers that change while training runs: pure functions of the step, so a resumed run needs no schedule state."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tokenizer.options import Options


class Constant(Options):
    """The same value at every step. In a recipe a bare number means this."""

    kind: Literal["constant"] = "constant"
    value: float = Field(examples=[0.25])

    @property
    def lowest(self) -> float:
        return self.value

    @property
    def highest(self) -> float:
        return self.value

    def at(self, step: int) -> float:
        return self.value


class _Ramp(Options):
    """From `start` to `end`, beginning at step `begin`."""

    start: float = Field(examples=[0.0])
    end: float = Field(examples=[1.0])
    begin: int = Field(default=0, ge=0)

    @property
    def lowest(self) -> float:
        return min(self.start, self.end)

    @property
    def highest(self) -> float:
        return max(self.start, self.end)


class Linear(_Ramp):
    """`start` until step `begin`, then a straight line that reaches `end` after `steps` steps and stays there."""

    kind: Literal["linear"] = "linear"
    steps: int = Field(gt=0, examples=[7])

    def at(self, step: int) -> float:
        return _between(self.start, self.end, _progress(step - self.begin, self.steps))


class Cosine(_Ramp):
    """As `Linear`, along half a cosine wave: flat at both ends."""

    kind: Literal["cosine"] = "cosine"
    steps: int = Field(gt=0, examples=[7])

    def at(self, step: int) -> float:
        progress = _progress(step - self.begin, self.steps)
        return _between(self.start, self.end, (1 - math.cos(math.pi * progress)) / 2)


class Cyclical(_Ramp):
    """In each period a ramp from `start` to `end`, then `end` (Fu et al. 2019, arXiv 1903.10145, eq. 6).

    `ramp` is the fraction of a period spent rising (R there); after `cycles` periods (None: never) it stays at `end`.
    """

    kind: Literal["cyclical"] = "cyclical"
    period: int = Field(gt=0, examples=[10])
    ramp: float = Field(default=0.5, gt=0, le=1)
    cycles: int | None = Field(default=None, gt=0, examples=[2])

    def at(self, step: int) -> float:
        cycle, position = divmod(max(step - self.begin, 0), self.period)
        if self.cycles is not None and cycle >= self.cycles:
            return self.end
        return _between(self.start, self.end, _progress(position, self.ramp * self.period))


def _progress(step: int, steps: int | float) -> float:
    return min(max(step / steps, 0.0), 1.0)


def _between(start: float, end: float, fraction: float) -> float:
    return end if fraction == 1 else start + (end - start) * fraction  # the end exactly, not up to rounding


def _bare_number(value: Any) -> Any:
    """YAML reads `1e-3` as a string, so strings count as numbers here; `Constant` then refuses the others by name."""
    number = isinstance(value, int | float | str) and not isinstance(value, bool)
    return {"kind": "constant", "value": value} if number else value


_Kinds = Annotated[Constant | Linear | Cosine | Cyclical, Field(discriminator="kind")]
Schedule = Annotated[
    Constant | Linear | Cosine | Cyclical,
    Field(discriminator="kind"),
    BeforeValidator(_bare_number, json_schema_input_type=float | _Kinds),
]
