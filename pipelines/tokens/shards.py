"""One shard of a token dataset: its place in the plan, and its Parquet file, written whole and read with checks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
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

ROWS_PER_SHARD = 4096  # about 1.2 MB of 256 tokens a row: a killed job loses little, a large set has hundreds of files
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


@dataclass
class ShardContent:
    """What a shard's file holds: readable rows in the source's order, and the unreadable ones as (key, reason).

    `tokens` (rows, h*w*q) unsigned; `labels` one a row with -1 for none, or None where the data set has no classes.
    """

    keys: list[str]
    tokens: np.ndarray
    labels: list[int] | None = None
    texts: list[str | None] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)


def default_shards(rows: int) -> int:
    return max(1, -(-rows // ROWS_PER_SHARD))


def plan(split: Split, rows: int, num_shards: int) -> list[Shard]:
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


def write_shard(folder: Path, spec: TokenSpec, shard: Shard, content: ShardContent) -> None:
    """Write the shard atomically. Equal content gives equal bytes (same pyarrow).

    Zstandard and dictionary pages: about 300 bytes for 256 tokens of 1,024 codes, where uint16 alone would take 1,053
    (Parquet stores it as INT32). Pages carry checksums, so that a damaged file is noticed when it is read.
    """
    schema = features(spec).arrow_schema
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(content.tokens.reshape(-1)), spec.tokens_per_image)
    columns: dict[str, pa.Array] = {"key": pa.array(content.keys, pa.string()), "tokens": tokens}
    if spec.classes is not None:
        columns["label"] = pa.array(content.labels, pa.int64())
    if spec.has_text:
        columns["text"] = pa.array(content.texts, pa.string())
    note = {
        "spec_sha256": spec.sha256,
        "split": shard.split,
        "rows": [shard.rows.start, shard.rows.stop],
        "skipped": content.skipped,
    }
    schema = schema.with_metadata({**(schema.metadata or {}), METADATA: json.dumps(note).encode()})
    table = pa.table(list(columns.values()), schema=schema)
    with replacing(folder / shard.file) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            use_dictionary=True,
            row_group_size=max(1, len(content.keys)),
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
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); {RERUN}") from error


def skipped_rows(path: Path) -> list[tuple[str, str]]:
    """The (key, reason) of each image that the shard's encoder could not read."""
    note = json.loads((pq.read_metadata(path).metadata or {})[METADATA])
    return [(key, reason) for key, reason in note["skipped"]]


def read_column(path: Path, name: str) -> list[Any]:
    """One column of a shard as Python values (keys, texts)."""
    return _read(path, [name]).column(name).to_pylist()


def read_tokens(path: Path, spec: TokenSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """Tokens (rows, h*w*q) in the spec's dtype, and labels (rows,) int64 (-1: none) where the spec has classes.

    Raises:
        UserError: damaged file, other columns than the spec's, or a value outside 0 … codebook_size - 1.
    """
    names = ["tokens"] + (["label"] if spec.classes is not None else [])
    table = _read(path, names)
    expected = features(spec).arrow_schema
    for name in names:
        if table.schema.field(name).type != expected.field(name).type:
            found = table.schema.field(name).type
            raise UserError(f"{path}: column {name} is {found}, token_spec.json expects {expected.field(name).type}")
    column = table.column("tokens").combine_chunks()
    if column.null_count:
        raise UserError(f"{path}: column tokens has {column.null_count} empty rows, expected none")
    tokens = column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), spec.tokens_per_image)
    if tokens.size and int(tokens.max()) >= spec.codebook_size:
        raise UserError(f"{path}: holds code {tokens.max()}, expected 0 … {spec.codebook_size - 1} (token_spec.json)")
    if spec.classes is None:
        return tokens, None
    labels = table.column("label").fill_null(-1).to_numpy()
    if labels.size and not (labels.min() >= -1 and labels.max() < len(spec.classes)):
        raise UserError(f"{path}: labels span {labels.min()} … {labels.max()}, expected 0 … {len(spec.classes) - 1}")
    return tokens, labels


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{path}: has columns {file.schema_arrow.names}, expected {', '.join(missing)} too")
            return file.read(columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); {RERUN}") from error


RERUN = "delete it and rerun the `smalti encode` command that wrote the folder"
