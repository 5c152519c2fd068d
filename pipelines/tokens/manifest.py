"""`manifest.json` of a token dataset: its files with rows and hashes, the skipped images, and the measured figures."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipelines.base.errors import UserError
from pipelines.base.recipe_files import validate
from pipelines.data.source import Split


class ShardEntry(BaseModel):
    """One file: `rows` it holds (skipped images not counted), its size and hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    rows: int
    bytes: int
    sha256: str


class Skipped(BaseModel):
    """An image that could not be read, so that the row has no tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    reason: str


class Stats(BaseModel):
    """Figures of a whole split. `unigram_bits` is the entropy of the code frequencies in bits per token (a prior that
    knows only how often each code occurs needs this much); `psnr_db` is the mean over `psnr_images` evenly spread rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    codes_used: int
    perplexity: float
    unigram_bits: float
    verdict: str
    reason: str
    psnr_db: float
    psnr_images: int


class ManifestSplit(BaseModel):
    """`planned` source rows became `rows` rows of tokens; the rest is named in `skipped`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    planned: int
    rows: int
    shards: tuple[ShardEntry, ...]
    skipped: tuple[Skipped, ...] = ()
    stats: Stats | None = None


class Manifest(BaseModel):
    """`manifest.json`, written last: its presence means that the folder is complete. `digest` is the identity of the
    content: the same however many processes wrote it, and however often they were killed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["smalti-token-manifest/1"] = "smalti-token-manifest/1"
    spec_sha256: str
    digest: str
    splits: dict[Split, ManifestSplit]


def digest_of(spec_sha256: str, splits: Mapping[Split, ManifestSplit]) -> str:
    """sha256 over the spec's hash and each shard's name, rows and hash, in order."""
    content = [spec_sha256, *([s.file, s.rows, s.sha256] for split in splits.values() for s in split.shards)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    try:
        content: Any = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    return validate(Manifest, content, path)
