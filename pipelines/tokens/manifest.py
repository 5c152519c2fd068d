"""`manifest.json` of a token dataset: its files with rows and hashes, the skipped images, and the measured figures."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.base.documents import read_json_mapping
from pipelines.base.recipe_files import validate
from pipelines.data.source import Split


class ShardEntry(BaseModel):
    """One file: `rows` it holds (skipped images not counted), its size and hash. Its name lies inside the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str = Field(pattern=r"^data/[a-z]+-\d{5,}-of-\d{5,}\.parquet$")
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str


class BaselinesEntry(BaseModel):
    """The counts of the unigram and the bigram, fitted on the split `split`: size and hash of their file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: Literal["baselines.safetensors"] = "baselines.safetensors"
    split: Split
    bytes: int = Field(ge=0)
    sha256: str


class Skipped(BaseModel):
    """An image that could not be read, so that the row has no tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    reason: str


class Stats(BaseModel):
    """Figures of a whole split. `unigram_bits` is the entropy of the code frequencies in bits per token (a prior that
    knows only how often each code occurs needs this much); `psnr_db` is the mean over `psnr_images` evenly spread rows.
    Of several levels, `codes_used` is the sum, and `perplexity` the mean over levels.
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (held := sum(shard.rows for shard in self.shards)) != self.rows:
            raise ValueError(f"the shards hold {held} rows, `rows` says {self.rows}")
        if self.rows + len(self.skipped) != self.planned:
            raise ValueError(f"{self.rows} rows and {len(self.skipped)} skipped, `planned` says {self.planned}")
        return self


class Manifest(BaseModel):
    """`manifest.json`, written last: its presence means that the folder is complete. `digest` is the identity of the
    content: the same however many processes wrote it, and however often they were killed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["smalti-token-manifest/1"] = "smalti-token-manifest/1"
    spec_sha256: str
    digest: str
    splits: dict[Split, ManifestSplit]
    baselines: BaselinesEntry | None = None


def digest_of(spec_sha256: str, splits: Mapping[Split, ManifestSplit]) -> str:
    """sha256 over the spec's hash and each shard's name, rows and hash, in order."""
    content = [spec_sha256, *([s.file, s.rows, s.sha256] for split in splits.values() for s in split.shards)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read `manifest.json`. UserError: unreadable, not a manifest, or naming files outside the folder."""
    return validate(Manifest, read_json_mapping(path), path)
