"""The spec of a token dataset: what stage one promises and stage two believes.

It holds what decides the tokens, nothing that is measured from them: the same spec means the same tokens, so its hash
is written into every shard and tells a finished shard from a foreign one. Figures of a run (codes used, perplexity,
PSNR, skipped images) stand in `manifest.json` and on the card.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.base.errors import UserError
from pipelines.base.recipe_files import flatten_keys, validate
from pipelines.base.redaction import Public
from pipelines.data.preprocess import Preprocess
from pipelines.data.source import Split

Unsigned = Literal["uint8", "uint16", "uint32"]


def narrowest(codebook_size: int) -> Unsigned:
    """The smallest unsigned integers that hold codes 0 … codebook_size - 1."""
    return "uint8" if codebook_size <= 2**8 else "uint16" if codebook_size <= 2**16 else "uint32"


class TokenizerIdentity(BaseModel):
    """Which tokenizer made the tokens. `fingerprint` covers preprocessing, encoder and codebook, not the decoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    library_version: str
    fingerprint: str
    codebook_sha256: str


class Compute(BaseModel):
    """How the encoder ran. Near-ties between codes can flip across precisions, devices, versions and kernel shapes:
    `batch` is the number of images in every forward pass, whatever batch size the user asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    dtype: Literal["float32"] = "float32"
    tf32: Literal[False] = False
    torch: str
    device: str
    batch: int = Field(ge=1)


class Source(BaseModel):
    """Where the images came from: the data block of the recipe (what `inspect --verify` opens again), what the source
    reports of each split, and the number of rows of each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: Public
    provenance: dict[Split, Public] = Field(default_factory=dict)
    rows: dict[Split, int]


class TokenSpec(BaseModel):
    """The canonical spec, written as `token_spec.json` and embedded in a prior's `config.json`.

    `grid` is (h, w, q): rows, columns, codes a position. `order` says how codes become a row of h*w*q tokens: position
    by position from the top left, the q codes of a position side by side. Values are 0 … codebook_size - 1 only;
    special ids belong to the prior. `classes` names the labels, in order (None: no labels).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["smalti-tokens/1"] = "smalti-tokens/1"
    codebook_size: int = Field(ge=1, le=2**32)
    num_codebooks: int = Field(ge=1)
    grid: tuple[int, int, int]
    order: Literal["raster, depth-minor"] = "raster, depth-minor"
    dtype: Unsigned
    tokenizer: TokenizerIdentity
    preprocess: Preprocess
    classes: tuple[str, ...] | None = None
    has_text: bool = False
    compute: Compute
    source: Source
    shards: dict[Split, int]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if min(self.grid) < 1 or self.grid[2] != self.num_codebooks:
            raise ValueError(f"grid {self.grid} must be positive and end in num_codebooks = {self.num_codebooks}")
        if self.dtype != narrowest(self.codebook_size):
            fitting = narrowest(self.codebook_size)
            raise ValueError(f"dtype of {self.codebook_size} codes is {fitting}, found {self.dtype}")
        if self.shards.keys() != self.source.rows.keys():
            raise ValueError(f"shards are planned for {sorted(self.shards)}, rows given for {sorted(self.source.rows)}")
        return self

    @property
    def tokens_per_image(self) -> int:
        height, width, depth = self.grid
        return height * width * depth

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON: sorted keys, no spaces."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def check_tokenizer(self, fingerprint: str, tokenizer: str = "the tokenizer", tokens: str = "the tokens") -> None:
        """Raise UserError, naming both sides, unless these tokens were made by the tokenizer of that fingerprint.

        `tokenizer` and `tokens` name the two sides as the user knows them (paths).
        """
        if fingerprint != self.tokenizer.fingerprint:
            raise UserError(
                f"{tokenizer} has fingerprint {fingerprint[:12]}…, but {tokens} were made by a tokenizer with "
                f"fingerprint {self.tokenizer.fingerprint[:12]}… ({self.tokenizer.kind}, {self.codebook_size} codes, "
                f"grid {'x'.join(map(str, self.grid))}): they do not belong together"
            )

    def check_same_codes(self, other: "TokenSpec", here: str, there: str) -> None:
        """Raise UserError unless a model of one spec understands the tokens of the other: same tokenizer, codes, grid
        and classes. Source, shards and compute may differ (another data set, encoded by the same tokenizer).
        """
        for name in ("codebook_size", "grid", "order", "classes"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise UserError(f"{here} has {name} {mine}, {there} has {theirs}: they do not belong together")
        self.check_tokenizer(other.tokenizer.fingerprint, tokenizer=there, tokens=here)


def differences(found: TokenSpec, expected: TokenSpec) -> list[str]:
    """The fields in which two specs differ, in words: `compute.torch: found '2.9', expected '2.15'`."""
    mine, theirs = flatten_keys(found.model_dump(mode="json")), flatten_keys(expected.model_dump(mode="json"))
    absent = object()
    return [
        f"{key}: found {_shown(mine.get(key, None))}, expected {_shown(theirs.get(key, None))}"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key, absent) != theirs.get(key, absent)
    ]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def read_spec(path: Path) -> TokenSpec:
    """Read `token_spec.json`; UserError when it is missing, unreadable or not a spec."""
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a token spec ({error})") from error
    return validate(TokenSpec, content, path)
