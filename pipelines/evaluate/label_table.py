"""Label accuracy for people: as rows of a report, and by class."""

from collections.abc import Mapping
from typing import Any


def label_rows(found: Mapping[str, Any], ceiling: bool = True) -> list[tuple[str, str]]:
    """The rows of a report for a `LabelAccuracy`, as a mapping; `ceiling`: with that of real images."""
    lines = [("samples that show their label", f"{found['accuracy']:.1%} of {found['images']:,} ({found['checker']})")]
    if ceiling and found["real_images"]:
        real = f"{found['real_accuracy']:.1%} of {found['real_images']:,}"
        lines.append(("… real images that do, by the same checker", real))
    if worst := _worst_first(found)[:3]:
        lines.append(("… the worst labels", ", ".join(f"{name} {share:.1%}" for name, share in worst)))
    return lines


def label_table(found: Mapping[str, Any]) -> str:
    """All classes as a Markdown table, to stand below a report."""
    cells = "\n".join(f"| {name} | {share:.1%} |" for name, share in _worst_first(found))
    return f"\n\n| label, worst first | shown |\n|---|---|\n{cells}"


def _worst_first(found: Mapping[str, Any]) -> list[tuple[str, float]]:
    return sorted(found["by_class"].items(), key=lambda pair: pair[1])
