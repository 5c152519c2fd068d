"""Caption accuracy for people: as rows of a report, and by factor."""

from collections.abc import Mapping
from typing import Any

from pipelines.evaluate.caption_accuracy import ALL, EXACT

SCENES = {"object": "one object", "relation": "two objects in a relation", "count": "a count"}


def caption_rows(found: Mapping[str, Any], ceiling: bool = True) -> list[tuple[str, str]]:
    """The rows of a report for a `CaptionAccuracy`, as a mapping; `ceiling`: with that of reconstructions."""
    lines = []
    for group in found["groups"]:
        samples, rebuilt = group["samples"], group["reconstructions"]
        lines.append(
            (f"samples that show their caption: {_title(group)}", f"{_share(samples[ALL])} of {group['images']:,}")
        )
        if ceiling:
            lines.append(("… reconstructions of the real pictures", _share(rebuilt[ALL])))
        factors = [f"{_word(name)} {share['mean']:.1%}" for name, share in samples.items() if name not in (ALL, EXACT)]
        lines.append(("… by factor", ", ".join(factors)))
        if EXACT in samples:
            lines.append(("… the very picture, code by code", _share(samples[EXACT])))
    if found["without_scene"]:
        lines.append(("samples whose caption tells no scene", f"{found['without_scene']:,}, not counted"))
    return lines


def caption_table(found: Mapping[str, Any]) -> str:
    """All factors as Markdown tables, one a kind of scene, to stand below a report."""
    return "".join(_table(group) for group in found["groups"])


def _table(group: Mapping[str, Any]) -> str:
    lines = [f"\n\n| {_title(group)} | samples | reconstructions of the real pictures |", "|---|---|---|"]
    for name, share in group["samples"].items():
        possible = group["reconstructions"].get(name)
        lines.append(f"| {_word(name)} | {_share(share)} | {'' if possible is None else _share(possible)} |")
    return "\n".join(lines)


def _title(group: Mapping[str, Any]) -> str:
    return f"{SCENES[group['scene']]}, {'never trained on' if group['held_out'] else 'seen in training'}"


def _word(name: str) -> str:
    return name.replace("_", " ")


def _share(found: Mapping[str, Any]) -> str:
    error = found["standard_error"]
    return f"{found['mean']:.1%}" + ("" if error is None else f" ± {error:.1%}")
