"""The spec of a token dataset: the contract between the two stages.

It holds what decides the tokens and nothing that is measured from them. The hash of what decides them is written into
every shard, so that a finished shard is told from a foreign one. Measured figures (codes used, perplexity, PSNR,
skipped images) stand in `manifest.json` and on the card.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from pipelines.base.documents import read_json_mapping
from pipelines.base.errors import UserError
from pipelines.base.recipe_files import flatten_keys, validate
from pipelines.base.redaction import Public
from pipelines.data.preprocess import Preprocess
from pipelines.data.source import Split
from tokenizer import CodeGrid, CodeGrids, code_axes
from tokenizer.bottlenecks.contract import MAX_CODES

Unsigned = Literal["uint8", "uint16", "uint32"]
MAX_TOKENS_PER_IMAGE = 2**24
Count = Annotated[int, Field(ge=1)]
CodeCount = Annotated[int, Field(ge=1, le=MAX_CODES)]
_number_or_numbers = Discriminator(lambda value: "numbers" if isinstance(value, list | tuple) else "number")


def smallest_dtype(num_codes: int) -> Unsigned:
    """The smallest unsigned integers that hold codes 0 … num_codes - 1."""
    return "uint8" if num_codes <= 2**8 else "uint16" if num_codes <= 2**16 else "uint32"


class TokenizerIdentity(BaseModel):
    """The tokenizer that made the tokens. `fingerprint` covers preprocessing, encoder and codebook, not the decoder;
    `codebook_sha256` covers the codebook alone. `library_version` is for people; the hash of the spec leaves it out.
    """

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
    """Where the images came from.

    `data`: the data block of the recipe, which `inspect --verify` opens again. `provenance`: what the source reports of
    each split. Both may name folders, which may move; the hash of the spec leaves them out. `rows`: the number of
    images of each split. `digests`: a sha256 for each split over how its rows are chosen and what they hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: Public
    provenance: dict[Split, Public] = Field(default_factory=dict)
    rows: dict[Split, int]
    digests: dict[Split, str] = Field(default_factory=dict)


class TokenSpec(BaseModel):
    """The canonical spec, written as `token_spec.json` and embedded in a prior's `config.json`.

    `levels` are the grids of codes, (rows, columns) each, coarse to fine. A position holds `num_quantizers` codes.
    `order` says how codes become a row of tokens: level by level, position by position from the top left, the codes of
    a position side by side. Values are 0 … num_codes - 1 only; special ids belong to the prior. Where there are several
    levels, `num_codes` and `num_quantizers` have a number for each, and `dtype` holds the codes of the largest.
    `preprocess` holds the image size. `classes` names the labels, in order (None: no labels).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["smalti-tokens/1"] = "smalti-tokens/1"
    num_codes: Annotated[
        Annotated[CodeCount, Tag("number")] | Annotated[tuple[CodeCount, ...], Tag("numbers")], _number_or_numbers
    ]
    num_quantizers: Annotated[
        Annotated[Count, Tag("number")] | Annotated[tuple[Count, ...], Tag("numbers")], _number_or_numbers
    ]
    levels: tuple[tuple[int, int], ...] = Field(min_length=1, max_length=8)
    order: Literal["raster, quantizers innermost"] = "raster, quantizers innermost"
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
        size = self.preprocess.size
        for name in ("num_codes", "num_quantizers"):
            found, several = getattr(self, name), len(self.levels) > 1
            if isinstance(found, tuple) != several or (several and len(found) != len(self.levels)):
                expected = "a number for each" if several else "one number"
                raise ValueError(f"{name}: found {found} for {len(self.levels)} level(s), expected {expected}")
        for level in self.levels:
            if not (min(level) >= 1 and max(level) <= size):
                raise ValueError(f"level {level}: expected 1 … {size} rows and columns for images of {size} x {size}")
        if self.tokens_per_image > MAX_TOKENS_PER_IMAGE:
            raise ValueError(f"{self.tokens_per_image:,} tokens an image, expected at most {MAX_TOKENS_PER_IMAGE:,}")
        if self.dtype != (fitting := smallest_dtype(self.most_codes)):
            raise ValueError(f"dtype of {self.most_codes} codes is {fitting}, found {self.dtype}")
        if self.classes is not None and len({*self.classes}) < len(self.classes):
            raise ValueError(f"classes {_shown(self.classes)}: expected names that differ")
        if self.shards.keys() != self.source.rows.keys():
            raise ValueError(f"shards are planned for {sorted(self.shards)}, rows given for {sorted(self.source.rows)}")
        if min((*self.shards.values(), *self.source.rows.values()), default=1) < 1:
            raise ValueError(
                f"expected at least one shard and one row in each split: {self.shards}, {self.source.rows}"
            )
        return self

    @property
    def code_grids(self) -> CodeGrids:
        """The grids of codes, coarse to fine."""
        counts = (_for_each(self.num_quantizers), _for_each(self.num_codes))
        return tuple(CodeGrid(*level, *count) for level, *count in zip(self.levels, *counts, strict=True))

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape of the codes of an image: (h, w, q) of one level, (n,) of several."""
        return code_axes(self.code_grids)

    @property
    def most_codes(self) -> int:
        """The size of the largest codebook."""
        return max(_for_each(self.num_codes))

    @property
    def tokens_per_image(self) -> int:
        return sum(grid.length for grid in self.code_grids)

    @property
    def sha256(self) -> str:
        """Hash of what decides the tokens. Fields at their defaults and places of files are left out, so that neither a
        new option nor another path changes it.
        """
        content = json.dumps(self._hashed(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def _hashed(self) -> dict[str, Any]:
        left_out = {"source": {"data", "provenance"}, "tokenizer": {"library_version"}}
        return {"format": self.format} | self.model_dump(mode="json", exclude_defaults=True, exclude=left_out)

    def check_tokenizer(self, fingerprint: str, tokenizer: str = "the tokenizer", tokens: str = "the tokens") -> None:
        """Raise UserError, naming both sides, unless these tokens were made by the tokenizer of that fingerprint.

        `tokenizer` and `tokens` name the two sides as the user knows them (paths).
        """
        if fingerprint != self.tokenizer.fingerprint:
            raise UserError(
                f"{tokenizer} has fingerprint {fingerprint[:12]}…, but {tokens} were made by a tokenizer with "
                f"fingerprint {self.tokenizer.fingerprint[:12]}… ({self.tokenizer.kind}, "
                f"{self.codes_in_words}): they do not belong together"
            )

    @property
    def codes_in_words(self) -> str:
        """`512 codes, grid 8x8x1`, or of each level."""
        return " + ".join(f"{grid.num_codes} codes, grid {'x'.join(map(str, grid.axes))}" for grid in self.code_grids)

    def check_same_codes(self, other: "TokenSpec", here: str, there: str) -> None:
        """Raise UserError unless a model of one spec understands the tokens of the other: same tokenizer, codes, grid
        and classes. Source, shards and compute may differ (another data set, encoded by the same tokenizer).
        """
        for name in ("num_codes", "grid", "levels", "order", "classes"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise UserError(f"{here} has {name} {mine}, {there} has {theirs}: they do not belong together")
        self.check_tokenizer(other.tokenizer.fingerprint, tokenizer=there, tokens=here)


def _for_each(number: int | tuple[int, ...]) -> tuple[int, ...]:
    """A number for each level."""
    return number if isinstance(number, tuple) else (number,)


def levels_of(grids: CodeGrids) -> dict[str, Any]:
    """The fields of a spec that say on which grids codes stand."""
    counts = [[getattr(grid, name) for grid in grids] for name in ("num_codes", "num_quantizers")]
    num_codes, num_quantizers = (each[0] if len(grids) == 1 else tuple(each) for each in counts)
    levels = tuple((grid.rows, grid.columns) for grid in grids)
    return {"num_codes": num_codes, "num_quantizers": num_quantizers, "levels": levels}


def differences(found: TokenSpec, expected: TokenSpec) -> list[str]:
    """The fields that change the hash of a spec, in words: `compute.torch: found '2.9', expected '2.15'`."""
    mine, theirs = flatten_keys(found._hashed()), flatten_keys(expected._hashed())
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
    return validate(TokenSpec, read_json_mapping(path), path)
