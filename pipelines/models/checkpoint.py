"""The folder of a model: `config.json`, `model.safetensors`, `README.md`, and `captions.json` of a prior that reads
captions. Strict on load; no pickle is ever read.

The weights are written first and `config.json`, which holds their hash, last: a folder torn by a crash does not load.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, model_validator

from pipelines.base.atomic_files import write_json, write_text
from pipelines.base.documents import read_json_mapping
from pipelines.base.errors import UserError
from pipelines.base.recipe_files import Model, validate
from pipelines.data.preprocess import Preprocess
from pipelines.models.captions import CAPTIONS, read_captions, takes_captions, write_captions
from pipelines.models.token_spec import TokenSpec
from pipelines.models.weights import load_model, write_weights
from prior import CaptionTokenizer, PriorConfig, TokenPrior
from tokenizer import Autoencoder, AutoencoderConfig

MOST_POSITIONS = 2**20  # of a sequence: no network attends to more, and its tables grow with it


class TokenizerFolder(BaseModel):
    """`config.json` of a tokenizer. `classes`: the names of the labels that a model with a condition takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["smalti-tokenizer/1"] = "smalti-tokenizer/1"
    model: AutoencoderConfig
    preprocess: Preprocess
    classes: tuple[str, ...] | None = None
    fingerprint: str
    weights_sha256: str

    @model_validator(mode="after")
    def _agree(self) -> Self:
        known = None if self.model.condition is None else self.model.condition.num_classes
        if self.classes is not None and len(self.classes) != known:
            raise ValueError(f"classes: found {len(self.classes)}, but the network knows {known or 'no'} labels")
        return self


class PriorFolder(BaseModel):
    """`config.json` of a prior: the network, and the spec of the tokens that it was trained on. `captions_sha256` is
    that of `captions.json`, where the prior reads captions."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["smalti-prior/1"] = "smalti-prior/1"
    model: PriorConfig
    token_spec: TokenSpec
    classes: tuple[str, ...] | None
    weights_sha256: str
    captions_sha256: str | None = None

    @model_validator(mode="after")
    def _captions_are_there(self) -> Self:
        if takes_captions(self.model.vocabulary) != (self.captions_sha256 is not None):
            found = "none" if self.captions_sha256 is None else "one"
            kind = self.model.vocabulary.condition.name
            raise ValueError(f"captions_sha256: found {found}, but the condition of the network is {kind!r}")
        return self

    @model_validator(mode="after")
    def _agree(self) -> Self:
        vocabulary, spec = self.model.vocabulary, self.token_spec
        num_classes = vocabulary.num_classes
        ours = [(segment.size, segment.axes) for segment in vocabulary.codes]
        theirs = [(grid.num_codes, grid.axes) for grid in spec.code_grids]
        if ours != theirs:
            raise ValueError(
                f"model.vocabulary has {_in_words(ours)}, token_spec has {_in_words(theirs)}; expected the same"
            )
        if vocabulary.code_length > MOST_POSITIONS:
            raise ValueError(
                f"the grid {vocabulary.code_axes} is too large, expected at most {MOST_POSITIONS:,} positions"
            )
        if vocabulary.condition.length > MOST_POSITIONS:
            raise ValueError(
                f"a caption has {vocabulary.condition.length} positions, expected at most {MOST_POSITIONS:,}"
            )
        if self.classes is not None and len(self.classes) != num_classes:
            raise ValueError(f"classes: found {len(self.classes)}, but the network knows {num_classes or 'no'} labels")
        if num_classes is not None and spec.classes is not None and spec.classes != self.classes:
            raise ValueError("classes and token_spec.classes differ; expected the same names in the same order")
        return self


def _in_words(levels: Sequence[tuple[int, tuple[int, ...]]]) -> str:
    return ", then ".join(f"{size} codes on the grid {axes}" for size, axes in levels)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer in eval mode, how its images are prepared, its identity, and the names of the labels that it takes
    (None: none, or unnamed).
    """

    model: Autoencoder
    preprocess: Preprocess
    fingerprint: str
    folder: Path
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LoadedPrior:
    """A prior in eval mode, the spec of its tokens, the names of its labels (None: it takes none, or they are unnamed),
    and the tokenizer of its captions (None: it takes none).
    """

    model: TokenPrior
    spec: TokenSpec
    classes: tuple[str, ...] | None
    folder: Path
    captions: CaptionTokenizer | None = None


def fingerprint(model: Autoencoder, preprocess: Preprocess) -> str:
    """sha256 over all that decides which codes an image gets: preprocessing, configuration, encoder and codebook.

    The decoder, statistics and options of training, and options at their defaults are left out: fine-tuning the decoder
    or adding an option keeps every token valid.
    """
    digest = hashlib.sha256()
    prepared = preprocess.model_dump(mode="json", exclude_defaults=True)
    relevant = {"model": model.encode_config(), "preprocess": prepared}
    digest.update(json.dumps(relevant, sort_keys=True).encode())
    for name, tensor in sorted(model.encode_state().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_tokenizer(
    folder: str | Path,
    model: Autoencoder,
    preprocess: Preprocess,
    classes: tuple[str, ...] | None = None,
    card: str = "",
) -> None:
    """Write a tokenizer's folder; `classes` names the labels of a model with a condition."""
    weights = write_weights(folder, model)
    config = TokenizerFolder(
        model=model.config,
        preprocess=preprocess,
        classes=classes,
        fingerprint=fingerprint(model, preprocess),
        weights_sha256=weights,
    )
    _write_description(folder, config, card or "# A smalti tokenizer\n")


def save_prior(
    folder: str | Path,
    prior: TokenPrior,
    spec: TokenSpec,
    classes: tuple[str, ...] | list[str] | None,
    card: str = "",
    captions: CaptionTokenizer | None = None,
) -> None:
    """Write a prior's folder; `spec` is that of the token dataset it was trained on, `captions` the tokenizer of the
    captions that it reads.
    """
    config = PriorFolder(
        model=prior.config,
        token_spec=spec,
        classes=tuple(classes) if classes is not None else None,
        weights_sha256=write_weights(folder, prior),
        captions_sha256=None if captions is None else write_captions(folder, captions),
    )
    if captions is None:
        (Path(folder) / CAPTIONS).unlink(missing_ok=True)  # of another prior that stood here
    _write_description(folder, config, card or "# A smalti prior\n")


def load_tokenizer(folder: str | Path, device: str | torch.device = "cpu") -> LoadedTokenizer:
    """The tokenizer of a run or model folder, in eval mode.

    Raises:
        UserError: missing or torn folder, unknown key, missing or extra weight, wrong hash or fingerprint.
    """
    folder = resolve_folder(folder)
    config = read_config(folder, TokenizerFolder)
    model = load_model(folder, config.model, lambda: Autoencoder(config.model), config.weights_sha256)
    found = fingerprint(model, config.preprocess)
    if found != config.fingerprint:
        raise UserError(
            f"{folder / 'config.json'}: fingerprint is {config.fingerprint[:12]}…, but encoder, codebook and "
            f"preprocessing give {found[:12]}…; the folder was edited after it was written"
        )
    return LoadedTokenizer(model.to(device).eval(), config.preprocess, config.fingerprint, folder, config.classes)


def tokenizer_config(folder: str | Path) -> TokenizerFolder:
    """What `config.json` of a tokenizer's run or model folder says, without its weights."""
    return read_config(resolve_folder(folder), TokenizerFolder)


def load_prior(folder: str | Path, device: str | torch.device = "cpu") -> LoadedPrior:
    """The prior of a run or model folder, in eval mode.

    Raises:
        UserError: as `load_tokenizer`; or the tokenizer of its captions is missing, damaged, or of another prior.
    """
    folder = resolve_folder(folder)
    config = read_config(folder, PriorFolder)
    captions = None if config.captions_sha256 is None else read_captions(folder, config.captions_sha256)
    words = config.model.vocabulary.condition.size
    if captions is not None and captions.num_words != words:
        raise UserError(f"{folder / CAPTIONS}: has {captions.num_words} words, but the network knows {words}")
    model = load_model(folder, config.model, lambda: TokenPrior(config.model), config.weights_sha256)
    return LoadedPrior(model.to(device).eval(), config.token_spec, config.classes, folder, captions)


def resolve_folder(path: str | Path) -> Path:
    """A model folder itself, or the `best/` (else `last/`) model of a run folder."""
    path = Path(path)
    for candidate in (path, path / "best", path / "last"):
        if os.path.lexists(candidate / "config.json"):
            return candidate
    if not path.exists():
        raise UserError(
            f"{path}: no such folder; expected a model folder (config.json) or a run that has saved a model"
        )
    raise UserError(
        f"{path}: has no config.json, best/ or last/; expected a model folder or a run that has saved a model"
    )


def _write_description(folder: str | Path, config: BaseModel, card: str) -> None:
    write_text(Path(folder) / "README.md", card)
    write_json(Path(folder) / "config.json", config.model_dump(mode="json"))


def read_config(folder: Path, model: type[Model]) -> Model:
    """`config.json` of a model folder.

    Raises:
        UserError: missing or damaged, of another format, or with an unknown or wrong key.
    """
    path = folder / "config.json"
    content = read_json_mapping(path)
    expected = model.model_fields["format"].default
    found = content.get("format")
    if found != expected:
        raise UserError(f"{path}: found format {found!r}, expected {expected!r}")
    return validate(model, content, path)
