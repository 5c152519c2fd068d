"""One shard of a token dataset: its place in the plan, and its Parquet file, written whole and read with checks."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, List, Value

from pipelines.base.atomic_files import replacing
from pipelines.base.errors import UserError
from pipelines.data.source import Split
from pipelines.models.token_spec import TokenSpec

ROWS_PER_SHARD = 4096  # about 1.2 MB of 256 tokens a row: a killed command loses little; also a row group's most rows
METADATA = b"smalti"


@dataclass(frozen=True)
class Shard:
    """Rows `rows` of a split's source, the `index`-th of `count` shards."""

    split: Split
    index: int
    count: int
    rows: range

    @property
    def file(self) -> str:
        """Path inside the token dataset."""
        return f"data/{self.split}-{self.index:05d}-of-{self.count:05d}.parquet"


def default_shards(rows: int) -> int:
    return max(1, -(-rows // ROWS_PER_SHARD))


def plan_shards(split: Split, rows: int, num_shards: int) -> list[Shard]:
    """Contiguous shards whose sizes differ by one at most: a function of its arguments, not of the processes."""
    count = max(1, min(num_shards, rows))
    bounds = [rows * index // count for index in range(count + 1)]
    return [Shard(split, i, count, range(bounds[i], bounds[i + 1])) for i in range(count)]


def features(spec: TokenSpec) -> Features:
    """The columns, as `datasets` names them."""
    columns: dict[str, Any] = {
        "key": Value("string"),
        "tokens": List(Value(spec.dtype), length=spec.tokens_per_image),
    }
    if spec.classes is not None:
        columns["label"] = ClassLabel(names=list(spec.classes))
    if spec.has_text:
        columns["text"] = Value("string")
    return Features(columns)


def token_table(
    spec: TokenSpec,
    keys: Sequence[str],
    tokens: np.ndarray,
    labels: Sequence[int] | np.ndarray | None = None,
    texts: Sequence[str | None] | None = None,
) -> pa.Table:
    """Rows of a shard: `tokens` (rows, h*w*q) unsigned, `labels` (-1: none) and `texts` where the spec has them."""
    flat = pa.array(tokens.reshape(-1), spec.dtype)
    columns: list[pa.Array] = [
        pa.array(keys, pa.string()),
        pa.FixedSizeListArray.from_arrays(flat, spec.tokens_per_image),
    ]
    if spec.classes is not None:
        columns.append(pa.array(labels, pa.int64()))
    if spec.has_text:
        columns.append(pa.array(texts, pa.string()))
    return pa.table(columns, schema=features(spec).arrow_schema)


def write_shard(
    folder: Path, spec: TokenSpec, shard: Shard, rows: pa.Table, skipped: Sequence[tuple[str, str]] = ()
) -> None:
    """Write the readable rows of a shard atomically, in the source's order; `skipped` are (key, reason) of the others.

    Equal content gives equal bytes (same pyarrow). Zstandard and dictionary pages: about 300 bytes for 256 tokens of
    1,024 codes, where uint16 alone would take 1,053 (Parquet stores it as INT32). Pages carry checksums, so that a
    damaged file is noticed when it is read.
    """
    note = {
        "spec_sha256": spec.sha256,
        "split": shard.split,
        "rows": [shard.rows.start, shard.rows.stop],
        "skipped": skipped,
    }
    metadata = {**(rows.schema.metadata or {}), METADATA: json.dumps(note).encode()}
    with replacing(folder / shard.file) as temporary:
        pq.write_table(
            rows.replace_schema_metadata(metadata),
            temporary,
            compression="zstd",
            use_dictionary=True,
            row_group_size=ROWS_PER_SHARD,
            write_page_checksum=True,
        )


def finished(folder: Path, spec: TokenSpec, shard: Shard) -> bool:
    """Whether the shard's file is there, whole, of this spec and of the planned rows."""
    try:
        metadata = pq.read_metadata(folder / shard.file)
        note = json.loads((metadata.metadata or {})[METADATA])
        rows = [shard.rows.start, shard.rows.stop]
        return (
            note["spec_sha256"] == spec.sha256
            and note["split"] == shard.split
            and note["rows"] == rows
            and metadata.num_rows + len(note["skipped"]) == len(shard.rows)
        )
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return False


def row_count(path: Path) -> int:
    """Rows of a Parquet file, from its footer; UserError when it has none that can be read."""
    return _footer(path).num_rows


def skipped_rows(path: Path) -> list[tuple[str, str]]:
    """The (key, reason) of each image that the shard's encoder could not read."""
    note = json.loads((pq.read_metadata(path).metadata or {})[METADATA])
    return [(key, reason) for key, reason in note["skipped"]]


def read_column(path: Path, name: str) -> list[Any]:
    """One column of a shard as Python values (keys, texts)."""
    return [value for table in _read(path, [name]) for value in table.column(name).to_pylist()]


def read_tokens(path: Path, spec: TokenSpec) -> Iterator[np.ndarray]:
    """The tokens of a shard in chunks of at most 4,096 rows: (rows, h*w*q) in the spec's dtype.

    Raises:
        UserError: damaged file, other columns than the spec's, or a value outside 0 … num_codes - 1 of its level.
    """
    for table in _read(path, ["tokens"]):
        yield _tokens(path, table, spec)


def read_rows(path: Path, spec: TokenSpec, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Keys and tokens of some rows of a shard, ascending. Only the row groups that hold them are read."""
    keys: list[str] = []
    tokens = np.empty((len(rows), spec.tokens_per_image), spec.dtype)
    first = 0
    for group, size in enumerate(_group_sizes(path)):
        inside = rows[(rows >= first) & (rows < first + size)] - first
        first += size
        if len(inside):
            (table,) = _read(path, ["key", "tokens"], [group])
            tokens[len(keys) : len(keys) + len(inside)] = _tokens(path, table, spec)[inside]
            keys += table.column("key").take(pa.array(inside)).to_pylist()
    return keys, tokens


def read_labels(path: Path, spec: TokenSpec) -> np.ndarray:
    """Labels (rows,) int64 of a data set with classes, -1 for a row without one. UserError as `read_tokens`."""
    parts = [_typed(path, table, "label", spec).fill_null(-1) for table in _read(path, ["label"])]
    labels = np.concatenate([np.empty(0, np.int64), *(part.to_numpy(zero_copy_only=False) for part in parts)])
    number = len(spec.classes or ())
    if labels.size and not (labels.min() >= -1 and labels.max() < number):
        raise UserError(f"{path}: labels span {labels.min()} … {labels.max()}, expected 0 … {number - 1}")
    return labels


def _tokens(path: Path, table: pa.Table, spec: TokenSpec) -> np.ndarray:
    column = _typed(path, table, "tokens", spec)
    if column.null_count or column.flatten().null_count:
        raise UserError(f"{path}: column tokens has empty rows, expected none")
    tokens = column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), spec.tokens_per_image)
    start = 0
    for grid in spec.code_grids if tokens.size else ():
        most = int(tokens[:, start : start + grid.length].max())
        if most >= grid.num_codes:
            raise UserError(f"{path}: holds code {most}, expected 0 … {grid.num_codes - 1} (token_spec.json)")
        start += grid.length
    return tokens


def _typed(path: Path, table: pa.Table, name: str, spec: TokenSpec) -> pa.Array:
    """A column as a single array, of the type that the spec expects."""
    found, expected = table.schema.field(name).type, features(spec).arrow_schema.field(name).type
    if found != expected:
        raise UserError(f"{path}: column {name} is {found}, token_spec.json expects {expected}")
    return table.column(name).combine_chunks()


def _group_sizes(path: Path) -> list[int]:
    metadata = _footer(path)
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _read(path: Path, columns: Sequence[str], groups: Sequence[int] | None = None) -> Iterator[pa.Table]:
    """The row groups of a shard, one after the other (None: all of them)."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{path}: has columns {file.schema_arrow.names}, expected {', '.join(missing)} too")
            for group in range(file.num_row_groups) if groups is None else groups:
                yield file.read_row_group(group, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); {RERUN}") from error


def _footer(path: Path) -> Any:
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); {RERUN}") from error


RERUN = "delete it and rerun the `smalti encode` command that wrote the folder"
