"""Tokens -> images: `smalti decode`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.base import distributed
from pipelines.base.atomic_files import write_json
from pipelines.base.documents import read_json_if_valid, read_json_mapping
from pipelines.base.errors import UserError
from pipelines.base.first_process import first_process
from pipelines.base.image_grids import save_grid, save_images
from pipelines.base.output_folder import OutputFolder, OutputKind
from pipelines.base.process_store import wait_for_all
from pipelines.base.progress import progress, say
from pipelines.models.checkpoint import LoadedTokenizer, load_tokenizer
from pipelines.tokens.dataset import TokenDataset, TokenSplit

SHOWN = 64  # images on the overview
ROWS_AT_ONCE = 4096
PICTURES = OutputKind(name="decoded images", command="smalti decode", owned=("decoded.json", "*.png"))


@dataclass(frozen=True)
class DecodeResult:
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
    max_images: int | None = None,
    batch_size: int = 64,
    overwrite: bool = False,
) -> DecodeResult:
    """Decode the first `max_images` rows of a split (None: all) into PNGs and an overview. Images that are there
    already are not written again. `tokenizer_folder` None takes the tokenizer stored with the tokens.

    Raises:
        UserError: another tokenizer than the tokens', no such split, or an `output` that holds something else.
    """
    folder = OutputFolder(output, PICTURES)
    folder.check(overwrite)
    dataset = TokenDataset.open(tokens_folder)
    rows = dataset.split(split)
    accelerator = distributed.start()
    tokenizer = load_tokenizer(tokenizer_folder or dataset.tokenizer_folder, accelerator.device)
    dataset.spec.check_tokenizer(tokenizer.fingerprint, str(tokenizer.folder), str(dataset.folder))
    count = len(rows) if max_images is None else min(max_images, len(rows))
    if count < 1:
        raise UserError(f"{dataset.folder}: nothing to decode in split {split!r}, which has {len(rows)} rows")
    request = {"tokens": dataset.manifest.digest, "split": split, "decoder": _weights(tokenizer)}
    pictures = [folder.path / name for name in file_names(rows.keys[:count])]
    result = DecodeResult(folder.path, pictures, folder.path / "grid.png", already_complete=False)
    if not overwrite and _decoded_rows(folder.path, request) >= count:
        if accelerator.is_main_process:
            say(f"{output}: already decoded, {count:,} images; nothing to do")
        return DecodeResult(folder.path, pictures, result.grid, already_complete=True)
    with folder.begin(overwrite, accelerator):
        with first_process(accelerator) as first:
            if first:
                write_json(folder.path / "decoded.json", {**request, "rows": 0})
        _write_pictures(tokenizer, rows, result, batch_size, accelerator)
        wait_for_all(accelerator)
        if accelerator.is_main_process:
            write_json(folder.path / "decoded.json", {**request, "rows": count})
    return result


def _write_pictures(
    tokenizer: LoadedTokenizer, rows: TokenSplit, result: DecodeResult, batch_size: int, accelerator: Accelerator
) -> None:
    """This process's share of the PNGs that are not there yet; the overview, which the first process always draws."""
    shown: list[Tensor] = []
    rank, world = accelerator.process_index, accelerator.num_processes
    with progress(len(result.pictures), "decode", unit="image", visible=rank == 0) as meter:
        for block in rows_of_process(len(result.pictures), rank, world, batch_size):
            missing = [row for row in block if row < SHOWN or not _is_written(result.pictures[row])]
            meter.advance(len(block) - len(missing))
            for part, keys, images in _decoded(tokenizer, rows, missing, batch_size):
                shown += [image for row, image in zip(part, images, strict=True) if row < SHOWN]
                new = [place for place, row in enumerate(part) if not _is_written(result.pictures[row])]
                texts = [{"key": keys[place]} for place in new]
                save_images([result.pictures[part[place]] for place in new], images[new], texts)
                meter.advance(len(part))
    if shown:
        save_grid(result.grid, shown, columns=8)


def rows_of_process(count: int, rank: int, world: int, batch_size: int) -> Iterator[list[int]]:
    """The rows that one process decodes, at most 4,096 at once. The first has those of the overview; of the rows after
    them each process takes `batch_size` in turn, beginning with the second.
    """
    window = ROWS_AT_ONCE * world
    for start in range(0, count, window):
        rows = range(start, min(start + window, count))
        mine = [row for row in rows if rank == (0 if row < SHOWN else ((row - SHOWN) // batch_size + 1) % world)]
        for first in range(0, len(mine), ROWS_AT_ONCE):
            yield mine[first : first + ROWS_AT_ONCE]


def _is_written(picture: Path) -> bool:
    """A crash of the machine may leave empty files."""
    return picture.is_file() and picture.stat().st_size > 0


@torch.inference_mode()
def _decoded(
    tokenizer: LoadedTokenizer, split: TokenSplit, rows: list[int], batch_size: int
) -> Iterator[tuple[list[int], list[str], Tensor]]:
    """Rows, keys and images (b, c, h, w) in [0, 1] of at most `batch_size` rows at once."""
    stored = split.part(rows)
    device = next(tokenizer.model.parameters()).device
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        yield rows[part], stored.keys[part], tokenizer.model.decode_codes(stored.codes(part).to(device)).cpu()


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
    """Identity of the decoder too: the fingerprint leaves it out, images depend on it."""
    return read_json_mapping(tokenizer.folder / "config.json")["weights_sha256"]


def _decoded_rows(folder: Path, request: dict[str, Any]) -> int:
    """How many rows of this request the folder holds. UserError when it holds another request's."""
    written = read_json_if_valid(folder / "decoded.json")
    if written is None:
        return 0
    done = written.pop("rows", 0)
    if written != request:
        differing = ", ".join(
            f"{key} {written.get(key)!r} (asked: {request[key]!r})"
            for key in request
            if written.get(key) != request[key]
        )
        raise UserError(f"{folder}: holds other images: {differing}; choose another --output, or --overwrite")
    return done if isinstance(done, int) else 0
