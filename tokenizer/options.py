"""The base of every option model, and which options decide what an encoder gives."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict


class _TrainingOnly:
    """See `TRAINING_ONLY`."""


TRAINING_ONLY: Final = _TrainingOnly()
"""Marks a field, as `decay: Annotated[float, TRAINING_ONLY]`, that changes how a model learns but not what a trained
one computes. Such a field may be changed without making a stored token invalid."""


class Options(BaseModel):
    """Options of one part: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def encode_config(self) -> dict[str, Any]:
        """`kind`, and every option that decides what a trained model computes and is not at its default.

        Defaults are left out so that a new option with a default changes no existing fingerprint. For the same reason
        a default that has been released must never change.
        """
        fields = type(self).model_fields
        hidden = {name for name, field in fields.items() if any(m is TRAINING_ONLY for m in field.metadata)}
        kind = {"kind": getattr(self, "kind")} if "kind" in fields else {}  # noqa: B009
        return kind | self.model_dump(mode="json", exclude_defaults=True, exclude=hidden)
