"""Tokens -> pictures: `smalti decode`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.base import distributed
from pipelines.base.atomic_files import write_json
from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_grid, save_png
from pipelines.base.progress import console, progress
from pipelines.models.checkpoint import LoadedTokenizer, load_tokenizer
from pipelines.tokens.dataset import TokenDataset

GRID = 64  # pictures on the overview


@dataclass(frozen=True)
class Decoded:
    """`pictures` PNGs in `folder`, one a row and named by its key, and the overview `grid`."""

    folder: Path
    pictures: list[Path]
    grid: Path
    already_complete: bool


def decode(
    tokenizer_folder: str | Path | None,
    tokens_folder: str | Path,
    output: str | Path,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 64,
    overwrite: bool = False,
) -> Decoded:
    """Decode the first `limit` rows of a split (None: all) into PNGs and an overview. Pictures that stand already are
    not written again. `tokenizer_folder` None takes the tokenizer stored with the tokens.

    Raises:
        UserError: another tokenizer than the tokens', no such split, or an `output` that holds something else.
    """
    dataset = TokenDataset.open(tokens_folder)
    rows = dataset.split(split)
    device = distributed.start().device
    tokenizer = load_tokenizer(tokenizer_folder or dataset.tokenizer_folder, device)
    dataset.spec.check_tokenizer(tokenizer.fingerprint, str(tokenizer.folder), str(dataset.folder))
    count = len(rows) if limit is None else min(limit, len(rows))
    if count < 1:
        raise UserError(f"{dataset.folder}: nothing to decode in split {split!r} ({len(rows)} rows, limit {limit})")
    output = Path(output)
    pictures = [output / name for name in file_names(rows.keys[:count])]
    grid = output / "grid.png"
    job = {"tokens": dataset.manifest.digest, "split": split, "decoder": _weights(tokenizer)}
    if _finished(output, job, count, overwrite):
        console.print(f"{output}: already decoded, {count:,} pictures; nothing to do", markup=False, soft_wrap=True)
        return Decoded(output, pictures, grid, already_complete=True)
    write_json(output / "decoded.json", {**job, "rows": 0})
    with progress(count, "decode", unit="image") as meter, torch.inference_mode():
        overview: list[torch.Tensor] = []
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            wanted = [i for i in range(start, stop) if i < GRID or overwrite or not pictures[i].is_file()]
            if wanted:
                images = tokenizer.model.decode_codes(rows.batch(wanted)["codes"].to(device)).cpu()
                overview += [image for i, image in zip(wanted, images, strict=True) if i < GRID]
                for i, image in zip(wanted, images, strict=True):
                    if overwrite or not pictures[i].is_file():
                        save_png(pictures[i], image, text={"key": rows.keys[i]})
            meter.advance(stop - start)
    save_grid(grid, overview, columns=8)
    write_json(output / "decoded.json", {**job, "rows": count})
    return Decoded(output, pictures, grid, already_complete=False)


def file_names(keys: list[str]) -> list[str]:
    """A PNG name for each key, safe on every file system; the row number tells apart keys that become equal."""
    plain = [re.sub(r"[^A-Za-z0-9._-]+", "_", key).strip("._")[:100] or "image" for key in keys]
    seen: set[str] = {"grid"}
    names = []
    for row, name in enumerate(plain):
        unique = name if name.lower() not in seen else f"{name}-row{row:07d}"
        seen.add(unique.lower())
        names.append(f"{unique}.png")
    return names


def _weights(tokenizer: LoadedTokenizer) -> str:
    """Identity of the decoder too: the fingerprint leaves it out, pictures depend on it."""
    return json.loads((tokenizer.folder / "config.json").read_text())["weights_sha256"]


def _finished(output: Path, job: dict[str, Any], count: int, overwrite: bool) -> bool:
    """Whether `output` holds this job; UserError when it holds anything else."""
    note = output / "decoded.json"
    if not output.exists() or not any(output.iterdir()):
        return False
    if not note.is_file():
        raise UserError(f"{output}: is not empty and was not written by `smalti decode`; choose another --output")
    if overwrite:
        return False
    try:
        written = json.loads(note.read_text())
        done = written.pop("rows")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{note}: cannot be read ({error}); choose another --output, or --overwrite") from error
    if written != job:
        differing = ", ".join(
            f"{key} {written.get(key)!r} (asked: {job[key]!r})" for key in job if written.get(key) != job[key]
        )
        raise UserError(f"{output}: holds other pictures: {differing}; choose another --output, or --overwrite")
    return done >= count
