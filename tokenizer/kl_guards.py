"""Guards against posterior collapse: what takes the place of the plain KL in the loss."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from tokenizer.options import Options
from tokenizer.schedules import Schedule

Elements = tuple[Float[Tensor, "b _ _ _"], ...]
"""The KL of every element of a latent in nats, one tensor for each level (see `Posterior.kl`)."""


class FreeBits(Options):
    """The KL below `nats` costs nothing (Kingma et al. 2016, arXiv 1606.04934, equation 15).

    `per`: what has its own allowance: every element of the latent, every channel (all positions of it together), or
    every level. A level whose elements are not independent, as with a full covariance, has only the last.
    """

    kind: Literal["free_bits"] = "free_bits"
    nats: float = Field(gt=0, examples=[0.5])
    per: Literal["element", "channel", "level"] = "element"

    def groups(self, elements: Elements) -> Float[Tensor, "b groups"]:
        """The KL of what has an allowance of its own."""
        return torch.cat([self._groups(level) for level in elements], 1)

    def penalty(self, groups: Float[Tensor, " groups"], step: int) -> Float[Tensor, ""]:
        """Σ max(nats, KL of a group)."""
        return groups.clamp(min=self.nats).sum()

    def check_elements(self, elements: Elements, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Raises ValueError when a level of one of these `shapes` (d, h, w) has no KL of its elements."""
        for level, shape in zip(elements, shapes, strict=True):
            if self.per != "level" and tuple(level.shape[1:]) != tuple(shape):
                raise ValueError(
                    f"kl_guard.per: found {self.per}, but the elements of this latent are not independent and have no "
                    "KL of their own; expected level"
                )

    def count(self, elements: Elements) -> int:
        """How many allowances an image has."""
        return self.groups(elements).shape[1]

    def _groups(self, level: Float[Tensor, "b d h w"]) -> Float[Tensor, "b groups"]:
        match self.per:
            case "element":
                return level.flatten(1)
            case "channel":
                return level.sum((2, 3))
            case "level":
                return level.sum((1, 2, 3))[:, None]


class Capacity(Options):
    """The KL is drawn to `capacity` nats an image, from above and below: |KL - C| (Burgess et al. 2018,
    arXiv 1804.03599, equation 8). Its gamma is the weight of "kl".
    """

    kind: Literal["capacity"] = "capacity"
    capacity: Schedule = Field(examples=[3.0])

    @field_validator("capacity")
    @classmethod
    def _not_negative(cls, capacity: Any) -> Any:
        if capacity.lowest < 0:
            raise ValueError(f"falls to {capacity.lowest}, expected at least 0: no KL is below that")
        return capacity

    def check_elements(self, elements: Elements, shapes: Sequence[tuple[int, int, int]]) -> None:
        """The KL of the whole latent will do."""

    def groups(self, elements: Elements) -> Float[Tensor, "b 1"]:
        """The KL of the whole latent."""
        return torch.stack([level.sum((1, 2, 3)) for level in elements]).sum(0)[:, None]

    def penalty(self, groups: Float[Tensor, " 1"], step: int) -> Float[Tensor, ""]:
        """|KL - C|."""
        return (groups[0] - self.capacity.at(step)).abs()


KLGuard = Annotated[FreeBits | Capacity, Field(discriminator="kind")]


def guarded_batch(guard: FreeBits | Capacity, elements: Elements, step: int) -> Float[Tensor, ""]:
    """What the loss of a batch holds in place of the KL. Allowances are for the mean over the images given here, as in
    both papers: a single image may well need none of a dimension. In training these are the part of a batch that a
    process holds at once; the mean over the parts is at least what the whole batch would give.
    """
    return guard.penalty(guard.groups(elements).mean(0), step)
