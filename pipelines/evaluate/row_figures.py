"""Figures of single images, written down as they are found: a killed command continues, and loses seconds of work."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.base import distributed
from pipelines.base.atomic_files import write_text
from pipelines.base.first_process import first_process
from pipelines.base.progress import progress
from pipelines.data import ImageBatch, ImageDataset, ordered_batches

FOLDER = "unfinished"  # inside of an output folder, until all rows are measured
OWNED = f"{FOLDER}/*.jsonl"
KEPT = "kept.jsonl"  # what earlier calls have found

Measure = Callable[[ImageBatch], Mapping[str, Tensor]]


@dataclass(frozen=True)
class RowFigures:
    """What was measured of one row. Without figures the image cannot be read."""

    row: int
    key: str
    label: int | None
    figures: dict[str, float]


def measure_rows(
    images: ImageDataset, rows: int, size: int, measure: Measure, output: Path, accelerator: Accelerator, title: str
) -> list[RowFigures]:
    """The figures of the first `rows` rows, in their order, on every process. `measure` gives one number for each image
    of a batch. `output` is held by the caller; what lies in it from an earlier call is taken over.

    A batch holds `size` consecutive rows, the same ones whatever was measured before and however many processes share
    the work. So no figure depends on either.
    """
    folder = output / FOLDER
    with first_process(accelerator) as first:
        if first:
            _keep(folder)
    done = {found.row: found for found in _read(folder / KEPT) if found.row < rows}
    passes = [range(start, min(start + size, rows)) for start in range(0, rows, size)]
    missing = [part for part in passes if not all(row in done for row in part)]
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    total, known = sum(map(len, mine)), (rows - sum(map(len, missing))) // accelerator.num_processes
    with (
        (folder / f"{accelerator.process_index}.jsonl").open("w") as file,
        progress(known + total, title, "image", known, visible=accelerator.is_main_process) as meter,
    ):
        for found in _measured(images, mine, size, measure):
            file.writelines(json.dumps(asdict(row)) + "\n" for row in found)
            file.flush()
            done |= {row.row: row for row in found}
            meter.advance(len(found))
    everyone = {row.row: row for row in distributed.gather(list(done.values()), accelerator)}
    return [everyone[row] for row in range(rows)]


def remove_unfinished(output: Path) -> None:
    """Delete what `measure_rows` has kept, once its result is stored. Called on the first process."""
    for path in (output / FOLDER).glob("*.jsonl"):
        path.unlink()
    with suppress(OSError):
        (output / FOLDER).rmdir()


def as_csv(found: Sequence[RowFigures], names: Sequence[str] | None) -> str:
    """A table of the rows that could be read; `names` are those of the classes."""
    text, readable = StringIO(), [row for row in found if row.figures]
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "key", "label", *(readable[0].figures if readable else ())])
    for row in readable:
        label = "" if row.label is None else names[row.label] if names else row.label
        table.writerow([row.row, row.key, label, *(f"{value:.6g}" for value in row.figures.values())])
    return text.getvalue()


def _measured(images: ImageDataset, passes: Sequence[range], size: int, measure: Measure) -> Iterator[list[RowFigures]]:
    rows = [row for part in passes for row in part]
    for part, batch in zip(passes, ordered_batches(images, rows, size, keep_empty=True), strict=True):
        absent = {place: bad for place, bad in batch.unreadable}
        found = [RowFigures(part[place], bad.key, None, {}) for place, bad in absent.items()]
        if len(batch):
            figures = measure(batch)
            values = torch.stack([value.double().cpu() for value in figures.values()], 1).tolist()
            readable = [row for place, row in enumerate(part) if place not in absent]
            found += [
                RowFigures(row, known.key, known.label, dict(zip(figures, numbers, strict=True)))
                for row, known, numbers in zip(readable, batch.metadata, values, strict=True)
            ]
        yield found


def _keep(folder: Path) -> None:
    """Join what the processes of earlier calls have written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted(folder.glob("*.jsonl"))
    found = {row.row: row for path in paths for row in _read(path)}
    write_text(folder / KEPT, "".join(json.dumps(asdict(row)) + "\n" for row in found.values()))
    for path in paths:
        if path.name != KEPT:
            os.unlink(path)


def _read(path: Path) -> Iterator[RowFigures]:
    """The rows of a file; the last line may be torn."""
    for line in path.read_text().splitlines():
        with suppress(ValueError, TypeError):
            yield RowFigures(**json.loads(line))
