"""Reading a token dataset: opened against its manifest, held as one unsigned array a split, gathered by rows."""

from collections.abc import Sequence
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
from pipelines.tokens.manifest import Manifest, ManifestSplit, ShardEntry, read_manifest
from pipelines.tokens.shards import RERUN, read_column, read_tokens, row_count


@dataclass(frozen=True)
class TokenRow:
    """One image's codes (h, w, q) in the spec's unsigned dtype, its key, and its label and text where there are any."""

    key: str
    codes: np.ndarray
    label: int | None
    text: str | None


class TokenSplit:
    """The rows of one split, in the source's order; map-style. Tokens stay in 1, 2 or 4 bytes each: a million images of
    256 tokens take 512 MB as uint16.
    """

    def __init__(self, folder: Path, spec: TokenSpec, name: Split, entry: ManifestSplit):
        self.folder, self.spec, self.entry = folder, spec, entry
        self.name: Split = name

    def __len__(self) -> int:
        return self.entry.rows

    @property
    def files(self) -> list[Path]:
        return [self.folder / shard.file for shard in self.entry.shards]

    @cached_property
    def _loaded(self) -> tuple[np.ndarray, np.ndarray | None]:
        tokens = np.empty((len(self), self.spec.tokens_per_image), self.spec.dtype)
        labels = np.empty(len(self), np.int64) if self.spec.classes is not None else None
        start = 0
        for file in self.files:
            part, part_labels = read_tokens(file, self.spec)
            stop = start + len(part)
            tokens[start:stop] = part
            if labels is not None and part_labels is not None:
                labels[start:stop] = part_labels
            start = stop
        tokens.flags.writeable = False
        return tokens, labels

    @property
    def tokens(self) -> np.ndarray:
        """(rows, h*w*q) unsigned, read-only: raster order, the q codes of a position side by side."""
        return self._loaded[0]

    @property
    def labels(self) -> np.ndarray | None:
        """(rows,) int64, -1 where a row has no label; None where the data set has no classes."""
        return self._loaded[1]

    @cached_property
    def keys(self) -> list[str]:
        return [key for file in self.files for key in read_column(file, "key")]

    @cached_property
    def texts(self) -> list[str | None] | None:
        return [text for file in self.files for text in read_column(file, "text")] if self.spec.has_text else None

    def __getitem__(self, index: int) -> TokenRow:
        label = None if self.labels is None or self.labels[index] < 0 else int(self.labels[index])
        text = None if self.texts is None else self.texts[index]
        return TokenRow(self.keys[index], self.tokens[index].reshape(self.spec.grid), label, text)

    def batch(self, indices: Sequence[int] | range | np.ndarray | Tensor) -> dict[str, Tensor]:
        """{"codes": (b, h, w, q) int64, "label": (b,) int64 if there are classes}, rows in the order asked."""
        rows = np.asarray(indices)
        codes = torch.from_numpy(self.tokens[rows].astype(np.int64)).view(len(rows), *self.spec.grid)
        return {"codes": codes} | ({} if self.labels is None else {"label": torch.from_numpy(self.labels[rows])})


class TokenDataset:
    """A complete token dataset. `open` holds sizes and row counts against the manifest, `verify_files` the hashes."""

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
                _check_file(folder / shard.file, shard)
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

    def verify_files(self) -> None:
        """Read every byte: UserError names the first file whose sha256 is not the manifest's."""
        for split in self.manifest.splits.values():
            for shard in split.shards:
                path = self.folder / shard.file
                found = sha256_of(path)
                if found != shard.sha256:
                    expected = f"manifest.json has {shard.sha256[:12]}…"
                    raise UserError(f"{path}: sha256 is {found[:12]}…, {expected}; {RERUN}")


def _check_file(path: Path, shard: ShardEntry) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing, but manifest.json names it; rerun the `smalti encode` command that wrote it")
    size = path.stat().st_size
    if size != shard.bytes:
        raise UserError(f"{path}: found {size} bytes, manifest.json has {shard.bytes}; {RERUN}")
    rows = row_count(path)
    if rows != shard.rows:
        raise UserError(f"{path}: found {rows} rows, manifest.json has {shard.rows}; {RERUN}")
