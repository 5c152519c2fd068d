"""The figures of a finished pipeline: `report.json` for programs, `report.md` and a table for people."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.base.atomic_files import replacing, write_json
from pipelines.base.progress import clock
from pipelines.evaluate.caption_check import FIGURE
from pipelines.evaluate.caption_table import caption_rows, caption_table
from pipelines.evaluate.label_table import label_rows, label_table
from pipelines.evaluate.prompt_figure import MARK, PROMPTS
from pipelines.evaluate.report_table import print_rows, write_markdown

Report = Mapping[str, Any]
OF_MODELS = {
    "overview.png": "Held-out images, their codes and reconstructions; new codes and the images that they decode to",
    "reconstructions.png": "Images of the held-out split, each above its reconstruction",
    "codes.png": "How often each code is used, and what the most and least used ones look like",
}
OF_SAMPLES = {"samples.png": "Samples of the prior, decoded"}
OF_CAPTIONS = {FIGURE: "Samples under their captions, and what is wrong with them"}
OF_PROMPTS = {PROMPTS: f"Samples of the first prompts; {MARK} marks prompts that are the caption of no training image"}
CHOSEN = "chosen_"  # begins the names of the figures of the best of several candidates
OF_IMAGES = (*OF_SAMPLES, *OF_CAPTIONS, *OF_PROMPTS)
FIGURES = (*OF_MODELS, *OF_IMAGES, *(CHOSEN + name for name in OF_IMAGES))


def rows(report: Report) -> list[tuple[str, str]]:
    """The report as lines: what, and the figure with its unit and what it has to be held against."""
    tokens, bits, fidelity = report["codes"], report["bits_per_token"], report["reconstruction"]
    likeness = "" if fidelity["ssim"] is None else f", SSIM {fidelity['ssim']:.4f}"
    lines = [
        ("reconstruction", f"PSNR {fidelity['psnr']:.2f} dB{likeness} ({fidelity['images']:,} images)"),
        ("codes used", f"{tokens['used']} of {tokens['size']} ({tokens['used'] / tokens['size']:.1%})"),
        ("perplexity of the codes", f"{tokens['perplexity']:.1f} ({tokens['verdict']})"),
        *(
            (f"… level {i} of {len(tokens['levels'])}", _level(level))
            for i, level in enumerate(tokens.get("levels", ()), 1)
        ),
        ("held-out bits per token", f"{bits['prior']:.3f} ({bits['images']:,} images)"),
        *_without_caption(bits),
        ("… unigram, bigram baseline", f"{bits['unigram']:.3f}, {bits['bigram']:.3f}"),
        ("… below the bigram baseline", f"{1 - bits['prior'] / bits['bigram']:.1%}"),
    ]
    lines += _accuracy_rows(report)
    if chosen := report.get("chosen"):
        title = f"best of {chosen['num_candidates']}: "
        found = _accuracy_rows(chosen, ceiling=False)
        lines += [(what if what.startswith("…") else title + what, figure) for what, figure in found]
    if prompts := report.get("prompts"):  # older reports lack prompts
        lines.append(
            ("prompts that are the caption of no training image", f"{prompts['unseen']:,} of {prompts['distinct']:,}")
        )
    total = sum(report["seconds"].values())
    times = ", ".join(f"{stage} {clock(seconds)}" for stage, seconds in report["seconds"].items())
    return [*lines, ("time", f"{clock(total)} ({times})")]


def _accuracy_rows(found: Report, ceiling: bool = True) -> list[tuple[str, str]]:
    """How many images show their label or caption. `ceiling`: and how many real or reconstructed ones do."""
    labels, captions = found["labels"], found.get("captions")  # older reports lack captions
    return [
        *(label_rows(labels, ceiling) if labels else ()),
        *(caption_rows(captions, ceiling) if captions else ()),
    ]


def _without_caption(bits: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the captions of images tell about their codes, where the prior reads captions."""
    without = bits.get("without_caption")
    return [] if without is None else [("… without the captions", f"{without:.3f}")]


def _level(tokens: Mapping[str, Any]) -> str:
    return f"{tokens['used']} of {tokens['size']} used, perplexity {tokens['perplexity']:.1f} ({tokens['verdict']})"


def write_report(folder: Path, report: Report, title: str) -> None:
    """Write `report.md`, then `report.json`, whose presence means that the pipeline is complete."""
    tables = _tables(report)
    if (chosen := report.get("chosen")) and (more := _tables(chosen)):
        tables += f"\n\n## The best of {chosen['num_candidates']} candidates{more}"
    write_markdown(folder, title, rows(report), figures_of(report), tables)
    write_json(folder / "report.json", report)


def _tables(found: Mapping[str, Any]) -> str:
    labels, captions = found["labels"], found.get("captions")
    return (label_table(labels) if labels else "") + (caption_table(captions) if captions else "")


def figures_of(report: Report) -> dict[str, str]:
    """The figures that belong to a report: file name, and what it shows."""
    figures = OF_MODELS | _figures_of_images(report)
    if chosen := report.get("chosen"):
        title = f"The best of {chosen['num_candidates']} candidates. "
        figures |= {CHOSEN + name: title + text for name, text in _figures_of_images(chosen).items()}
    return figures


def _figures_of_images(found: Report) -> dict[str, str]:
    checked = (found.get("captions") or {}).get("groups")
    return OF_SAMPLES | (OF_CAPTIONS if checked else {}) | (OF_PROMPTS if found.get("prompts") else {})


def print_report(report: Report, title: str) -> None:
    print_rows(rows(report), title)


def is_complete(report: Report) -> bool:
    """Whether every figure is there, as a number where a number belongs."""
    try:
        return bool(rows(report))
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return False


def place_figure(source: Path, target: Path) -> None:
    """Copy a figure to where the report shows it, atomically."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
