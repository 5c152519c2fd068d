"""Figures that take seconds: all of a request are there, or they are drawn from the beginning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.base.documents import read_json_if_valid
from pipelines.base.errors import UserError


def is_finished(output: Path, document: str, identity: Mapping[str, Any], figures: Sequence[str]) -> bool:
    """Whether `document`, which is written last, says that the figures are those of this request, and they are there.

    Raises:
        UserError: they are those of another request.
    """
    written = read_json_if_valid(output / document)
    if written is None:
        return False
    if written.get("request") != identity:
        raise UserError(f"{output}: holds what another request has drawn; choose another --output, or --overwrite")
    return all((output / name).is_file() for name in figures)
