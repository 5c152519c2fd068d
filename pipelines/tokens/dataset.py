"""Reading a token dataset: opened against its manifest, read file by file or as one unsigned array a split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pipelines.base.atomic_files import sha256_of
from pipelines.base.errors import UserError
from pipelines.data.source import Split
from pipelines.models.token_spec import TokenSpec, read_spec
from pipelines.tokens.baselines import LevelBaselines, read_baselines
from pipelines.tokens.manifest import Manifest, ManifestSplit, read_manifest
from pipelines.tokens.shards import RERUN, read_column, read_labels, read_rows, read_tokens, row_count

Rows = Sequence[int] | range | np.ndarray | Tensor


class TokenSplit:
    """The rows of one split, in the source's order.

    `batch` and `tokens` hold the whole split in memory, in 1, 2 or 4 bytes a token: a million images of 256 tokens take
    512 MB as uint16. `chunks` and `part` read only the files that they need.
    """

    def __init__(self, folder: Path, spec: TokenSpec, name: Split, entry: ManifestSplit):
        self.folder, self.spec, self.entry = folder, spec, entry
        self.name: Split = name

    def __len__(self) -> int:
        return self.entry.rows

    @property
    def files(self) -> list[Path]:
        return [self.folder / shard.file for shard in self.entry.shards]

    def chunks(self) -> Iterator[np.ndarray]:
        """All tokens in chunks of at most 4,096 rows, (rows, tokens) unsigned."""
        return (chunk for file in self.files for chunk in read_tokens(file, self.spec))

    @cached_property
    def tokens(self) -> np.ndarray:
        """(rows, tokens) unsigned, read-only: level by level, raster order, the q codes of a position side by side."""
        tokens = np.empty((len(self), self.spec.tokens_per_image), self.spec.dtype)
        start = 0
        for chunk in self.chunks():
            tokens[start : start + len(chunk)] = chunk
            start += len(chunk)
        tokens.flags.writeable = False
        return tokens

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(rows,) int64, -1 where a row has no label; None where the data set has no classes."""
        if self.spec.classes is None:
            return None
        return np.concatenate([read_labels(file, self.spec) for file in self.files])

    @cached_property
    def keys(self) -> list[str]:
        return [key for file in self.files for key in read_column(file, "key")]

    @cached_property
    def texts(self) -> list[str | None] | None:
        return [text for file in self.files for text in read_column(file, "text")] if self.spec.has_text else None

    def batch(self, indices: Rows) -> dict[str, Tensor]:
        """{"codes": (b, *spec.grid) int64, "label": (b,) int64 if there are classes}, rows in the order asked."""
        rows = np.asarray(indices)
        codes = torch.from_numpy(self.tokens[rows].astype(np.int64)).view(len(rows), *self.spec.grid)
        return {"codes": codes} | ({} if self.labels is None else {"label": torch.from_numpy(self.labels[rows])})

    def part(self, indices: Rows) -> "TokenPart":
        """Keys and tokens of some rows, ascending, from the files that hold them."""
        rows = np.asarray(indices)
        ends = np.cumsum([shard.rows for shard in self.entry.shards])
        if len(rows) and not (rows[0] >= 0 and rows[-1] < len(self) and (np.diff(rows) > 0).all()):
            raise IndexError(f"expected ascending rows of 0 … {len(self) - 1}")
        parts = [([], np.empty((0, self.spec.tokens_per_image), self.spec.dtype))]
        where = np.searchsorted(ends, rows, side="right")
        for shard in np.unique(where).tolist():
            inside = rows[where == shard] - (ends[shard] - self.entry.shards[shard].rows)
            parts.append(read_rows(self.files[shard], self.spec, inside))
        keys, tokens = [key for part in parts for key in part[0]], np.concatenate([part[1] for part in parts])
        return TokenPart(keys, tokens, self.spec.grid)


@dataclass(frozen=True)
class TokenPart:
    """Some rows of a split: `keys`, and `tokens` (rows, tokens) unsigned. `grid`: the shape of one image's codes."""

    keys: list[str]
    tokens: np.ndarray
    grid: tuple[int, ...]

    def codes(self, rows: slice | np.ndarray | Sequence[int]) -> Tensor:
        """(b, *grid) int64."""
        return torch.from_numpy(self.tokens[rows].astype(np.int64)).view(-1, *self.grid)


class TokenDataset:
    """A complete token dataset. `open` checks sizes and row counts against the manifest, `verify_files` the hashes."""

    def __init__(self, folder: Path, spec: TokenSpec, manifest: Manifest):
        self.folder, self.spec, self.manifest = folder, spec, manifest
        self._splits: dict[Split, TokenSplit] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "TokenDataset":
        """Open a token dataset.

        Raises:
            UserError: not a token dataset, incomplete, or with files that differ from the manifest.
        """
        folder = Path(folder)
        if not (folder / "token_spec.json").is_file():
            what = "no such folder" if not folder.exists() else "has no token_spec.json"
            raise UserError(f"{folder}: {what}; expected a token dataset written by `smalti encode`")
        spec = read_spec(folder / "token_spec.json")
        path = folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"{folder}: incomplete (no manifest.json): rerun `smalti encode … --output {folder}`")
        manifest = read_manifest(path)
        if manifest.spec_sha256 != spec.sha256:
            raise UserError(
                f"{path}: belongs to the spec {manifest.spec_sha256[:12]}…, token_spec.json is {spec.sha256[:12]}…"
            )
        for split in manifest.splits.values():
            for shard in split.shards:
                _check_size(folder / shard.file, shard.bytes)
                if (rows := row_count(folder / shard.file)) != shard.rows:
                    path = folder / shard.file
                    raise UserError(f"{path}: found {rows} rows, manifest.json has {shard.rows}; {RERUN}")
        if manifest.baselines is not None:
            _check_size(folder / manifest.baselines.file, manifest.baselines.bytes)
        return cls(folder, spec, manifest)

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer that made the tokens, stored with them."""
        return self.folder / "tokenizer"

    @property
    def splits(self) -> list[Split]:
        """Names of the splits there are, the training split first where there is one."""
        return list(self.manifest.splits)

    def split(self, wanted: str) -> TokenSplit:
        """The split of that name; its tokens are read on first use. UserError names the splits there are."""
        if wanted not in self.splits:
            raise UserError(f"{self.folder}: has no split {wanted!r}; expected one of {', '.join(self.splits)}")
        name = cast(Split, wanted)
        if name not in self._splits:
            self._splits[name] = TokenSplit(self.folder, self.spec, name, self.manifest.splits[name])
        return self._splits[name]

    def baselines(self) -> LevelBaselines:
        """The unigram and the bigram that `encode` fitted on the train split.

        Raises:
            UserError: there is no train split, or the file is damaged.
        """
        entry = self.manifest.baselines
        if entry is None:
            found = ", ".join(self.splits)
            raise UserError(
                f"{self.folder}: has no baselines, which `smalti encode` fits on split 'train' (has {found})"
            )
        return read_baselines(self.folder / entry.file, entry.sha256, self.spec)

    def verify_files(self) -> None:
        """Read every byte: UserError names the first file whose sha256 is not the manifest's."""
        entries = [shard for split in self.manifest.splits.values() for shard in split.shards]
        for entry in [*entries, *([self.manifest.baselines] if self.manifest.baselines else [])]:
            path = self.folder / entry.file
            if (found := sha256_of(path)) != entry.sha256:
                raise UserError(f"{path}: sha256 is {found[:12]}…, manifest.json has {entry.sha256[:12]}…; {RERUN}")


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing, but manifest.json names it; rerun the `smalti encode` command that wrote it")
    if (found := path.stat().st_size) != expected:
        raise UserError(f"{path}: found {found} bytes, manifest.json has {expected}; {RERUN}")
