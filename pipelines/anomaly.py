"""Which images are unlike those that a model was trained on? `smalti anomaly`: a score for each image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field

from pipelines.base import distributed
from pipelines.base.atomic_files import write_json, write_text
from pipelines.base.documents import read_json_if_valid
from pipelines.base.errors import UserError
from pipelines.base.output_folder import OutputFolder, OutputKind
from pipelines.base.process_store import wait_for_all
from pipelines.base.progress import say
from pipelines.data import DataConfig, ImageDataset, Split
from pipelines.evaluate.anomaly_scores import SCORES, area_under_curve, scores_csv
from pipelines.evaluate.held_out import identity_of, open_held_out
from pipelines.evaluate.image_likelihood import measure_images, pixels_are_known
from pipelines.evaluate.model_report import meaning_of
from pipelines.evaluate.row_figures import FOLDER, OWNED, RowFigures, remove_unfinished
from pipelines.evaluate.value_figure import draw_histograms
from pipelines.models.checkpoint import LoadedTokenizer, load_tokenizer
from pipelines.models.image_pipeline_folder import find_tokenizer
from pipelines.models.labels import Label, label_number
from pipelines.tokens.encoding_spec import source_digest

FOREIGN_DATA = "--foreign-data"
FOREIGN = "foreign"  # inside of the output, while the images of `foreign_data` are measured
ANOMALY = OutputKind(
    "anomaly scores",
    "smalti anomaly",
    owned=("anomaly.json", "scores.csv", "scores.png", "request.json", OWNED, f"{FOREIGN}/{FOLDER}/*.jsonl"),
)


class AnomalyRequest(BaseModel):
    """The first `max_images` images of a split (None: all), and of the foreign data if there is any: of its split, or
    of all its images where that would be empty.

    `draws`: latents that bound the likelihood of each image. `foreign`: labels of images that are to stand out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    split: Split = "test"
    max_images: int | None = Field(default=None, ge=1)
    draws: int = Field(default=100, ge=1)
    foreign: tuple[Label, ...] = ()
    batch_size: int = Field(default=64, ge=1)


def score_anomalies(
    folder: str | Path,
    data: DataConfig,
    output: str | Path,
    request: AnomalyRequest | None = None,
    foreign_data: DataConfig | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `scores.csv`, a line an image, `scores.png`, and last `anomaly.json`, which is returned.

    Scores are the negative ELBO and the importance-weighted NLL in nats, of a model whose latent is not random the
    error of the reconstruction; larger is stranger. Where it is known which images are foreign, by label or because
    they are those of `foreign_data`, the area under the ROC curve says how well each score tells them. Rerunning
    continues.

    Raises:
        UserError: no tokenizer there, an unknown label, or an `output` that holds something else.
    """
    request, output, accelerator = request or AnomalyRequest(), Path(output), distributed.start()
    target = OutputFolder(output, ANOMALY)
    target.check(overwrite)
    tokenizer = load_tokenizer(find_tokenizer(folder), accelerator.device)
    images = open_held_out(tokenizer, data, request.split, accelerator)
    others = None
    if foreign_data is not None:
        others = open_held_out(tokenizer, foreign_data, request.split, accelerator, FOREIGN_DATA, or_all=True)
    labels = foreign_labels(images, request.foreign)
    digests = [source_digest(data, images)]
    if foreign_data is not None and others is not None:
        digests.append(source_digest(foreign_data, others))
    identity = identity_of(tokenizer, digests, request)
    if not overwrite and read_json_if_valid(output / "request.json") not in (None, identity):
        raise UserError(f"{output}: holds scores of another request; choose another --output, or --overwrite")
    report = read_json_if_valid(output / "anomaly.json") if not overwrite else None
    if report is not None and report.get("request") == identity:
        if accelerator.is_main_process:
            say(f"{output}: already scored; nothing to do")
        return report
    wait_for_all(accelerator)  # nobody looks at the folder any more
    with target.begin(overwrite, accelerator):
        if accelerator.is_main_process:
            write_json(output / "request.json", identity)
        found = _measure(tokenizer, images, request, output, accelerator)
        foreign = [row.label in labels for row in found] if labels else None
        names = [images.classes] * len(found)
        if others is not None:
            strange = _measure(tokenizer, others, request, output / FOREIGN, accelerator)
            foreign = [*(foreign or [False] * len(found)), *[True] * len(strange)]
            found, names = found + strange, names + [others.classes] * len(strange)
        notes = [
            f"{name}: {meaning_of(tokenizer.model, False)}"
            for name, shown in (("the images", images), ("the foreign images", others))
            if shown is not None and not pixels_are_known(tokenizer.model, shown)
        ]
        report = {"request": identity, **_report(found, foreign), "notes": notes}
        if accelerator.is_main_process:
            _write(output, report, found, foreign, names)
        wait_for_all(accelerator)
    return report


def foreign_labels(images: ImageDataset, wanted: Sequence[Label]) -> set[int]:
    """The numbers of the classes. UserError for one that the data does not have."""
    count = None if images.classes is None else len(images.classes)
    if wanted and count is None:
        raise UserError(f"--foreign: the data has no labels; expected {FOREIGN_DATA}")
    return {label_number(label, count, images.classes, "data set", "--foreign") for label in wanted}


def _measure(
    tokenizer: LoadedTokenizer, images: ImageDataset, request: AnomalyRequest, output: Path, accelerator: Accelerator
) -> list[RowFigures]:
    rows = min(len(images), request.max_images or len(images))
    found = measure_images(tokenizer.model, images, rows, request.draws, request.batch_size, output, accelerator)
    if not any(row.figures for row in found):
        raise UserError(f"data: none of {rows:,} images can be read")
    return found


def _report(found: Sequence[RowFigures], foreign: Sequence[bool] | None) -> dict[str, Any]:
    """Counts, and the area under the ROC curve of each score; None where all images are of one kind."""
    readable = [place for place, row in enumerate(found) if row.figures]
    names = [name for name in SCORES if name in found[readable[0]].figures]
    strange = None if foreign is None else np.array([foreign[place] for place in readable])
    areas: dict[str, float | None] = {}
    if strange is not None:
        for name in names:
            areas[name] = area_under_curve(np.array([found[place].figures[name] for place in readable]), strange)
    return {
        "images": len(readable),
        "unreadable": len(found) - len(readable),
        "foreign": None if strange is None else int(strange.sum()),
        "roc_auc": areas or None,
    }


def _write(
    output: Path,
    report: dict[str, Any],
    found: Sequence[RowFigures],
    foreign: Sequence[bool] | None,
    names: Sequence[Sequence[str] | None],
) -> None:
    write_text(output / "scores.csv", scores_csv(found, foreign, names))
    kinds = foreign or [False] * len(found)
    readable = [(row.figures, kind) for row, kind in zip(found, kinds, strict=True) if row.figures]
    best = next(name for name in reversed(SCORES) if name in readable[0][0])
    groups = {"known" if foreign else "images": False, **({"foreign": True} if foreign else {})}
    values = {name: [figures[best] for figures, kind in readable if kind == wanted] for name, wanted in groups.items()}
    areas = ", ".join(f"{name} {area:.4f}" for name, area in (report["roc_auc"] or {}).items() if area is not None)
    title = f"area under the ROC curve: {areas}" if areas else f"{report['images']:,} images"
    draw_histograms(output / "scores.png", values, f"{best}, nats an image", title, show_means=False)
    write_json(output / "anomaly.json", report)
    for folder in (output, output / FOREIGN):
        remove_unfinished(folder)
    if (output / FOREIGN).is_dir():
        (output / FOREIGN).rmdir()
    say(f"{output}: {report['images']:,} images scored; {title}")
    for note in report["notes"]:
        say(f"smalti: {note}")
