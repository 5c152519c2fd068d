"""The folder of a model: `config.json`, `model.safetensors`, `README.md`. Strict on load; no pickle is ever read.

The weights are written first and `config.json`, which holds their hash, last: a folder torn by a crash does not load.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipelines.base.atomic_files import replacing, sha256_of, write_json, write_text
from pipelines.base.errors import UserError
from pipelines.base.recipe_files import Model, validate
from pipelines.data.preprocess import Preprocess
from pipelines.models.token_spec import TokenSpec
from prior import PriorConfig, TokenPrior
from tokenizer import Autoencoder, AutoencoderConfig


class TokenizerFolder(BaseModel):
    """`config.json` of a tokenizer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["smalti-tokenizer/1"] = "smalti-tokenizer/1"
    model: AutoencoderConfig
    preprocess: Preprocess
    fingerprint: str
    weights_sha256: str


class PriorFolder(BaseModel):
    """`config.json` of a prior: the network, and the spec of the tokens that it was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["smalti-prior/1"] = "smalti-prior/1"
    model: PriorConfig
    token_spec: TokenSpec
    classes: tuple[str, ...] | None
    weights_sha256: str


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer in eval mode, how its images are prepared, and its identity."""

    model: Autoencoder
    preprocess: Preprocess
    fingerprint: str
    folder: Path


@dataclass(frozen=True)
class LoadedPrior:
    """A prior in eval mode, the spec of its tokens, and the names of its labels (None: unconditional or unnamed)."""

    model: TokenPrior
    spec: TokenSpec
    classes: tuple[str, ...] | None
    folder: Path


def fingerprint(model: Autoencoder, preprocess: Preprocess) -> str:
    """sha256 over all that decides which codes an image gets: preprocessing, configuration, encoder and codebook.

    The decoder is left out: fine-tuning it keeps every token valid.
    """
    digest = hashlib.sha256()
    config = model.config.model_dump(mode="json")
    config["likelihood"] = config["likelihood"]["kind"]  # owns the encoder's pixel range; its scale is the decoder's
    relevant = {"model": config, "preprocess": preprocess.model_dump(mode="json")}
    digest.update(json.dumps(relevant, sort_keys=True).encode())
    for part in ("encoder", "bottleneck"):
        for name, tensor in sorted(getattr(model, part).state_dict().items()):
            digest.update(f"{part}.{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_tokenizer(folder: str | Path, model: Autoencoder, preprocess: Preprocess, card: str = "") -> None:
    """Write a tokenizer's folder."""
    weights = _write_weights(folder, model)
    config = TokenizerFolder(
        model=model.config,
        preprocess=preprocess,
        fingerprint=fingerprint(model, preprocess),
        weights_sha256=weights,
    )
    _write_description(folder, config, card or "# A smalti tokenizer\n")


def save_prior(
    folder: str | Path, prior: TokenPrior, spec: TokenSpec, classes: tuple[str, ...] | list[str] | None, card: str = ""
) -> None:
    """Write a prior's folder; `spec` is that of the token dataset it was trained on."""
    weights = _write_weights(folder, prior)
    names = tuple(classes) if classes is not None else None
    config = PriorFolder(model=prior.config, token_spec=spec, classes=names, weights_sha256=weights)
    _write_description(folder, config, card or "# A smalti prior\n")


def load_tokenizer(folder: str | Path, device: str | torch.device = "cpu") -> LoadedTokenizer:
    """The tokenizer of a run or model folder, in eval mode.

    Raises:
        UserError: missing or torn folder, unknown key, missing or extra weight, wrong hash or fingerprint.
    """
    folder = resolve_folder(folder)
    config = _read_config(folder, TokenizerFolder)
    model = Autoencoder(config.model)
    _read_weights(folder, model, config.weights_sha256)
    found = fingerprint(model, config.preprocess)
    if found != config.fingerprint:
        raise UserError(
            f"{folder / 'config.json'}: fingerprint is {config.fingerprint[:12]}…, but encoder, codebook and "
            f"preprocessing give {found[:12]}…; the folder was edited after it was written"
        )
    return LoadedTokenizer(model.to(device).eval(), config.preprocess, config.fingerprint, folder)


def tokenizer_config(folder: str | Path) -> TokenizerFolder:
    """What `config.json` of a tokenizer's run or model folder says, without its weights."""
    return _read_config(resolve_folder(folder), TokenizerFolder)


def load_prior(folder: str | Path, device: str | torch.device = "cpu") -> LoadedPrior:
    """The prior of a run or model folder, in eval mode.

    Raises:
        UserError: as `load_tokenizer`.
    """
    folder = resolve_folder(folder)
    config = _read_config(folder, PriorFolder)
    model = TokenPrior(config.model)
    _read_weights(folder, model, config.weights_sha256)
    return LoadedPrior(model.to(device).eval(), config.token_spec, config.classes, folder)


def resolve_folder(path: str | Path) -> Path:
    """A model folder itself, or the `best/` (else `last/`) model of a run folder."""
    path = Path(path)
    for candidate in (path, path / "best", path / "last"):
        if (candidate / "config.json").is_file():
            return candidate
    if not path.exists():
        raise UserError(
            f"{path}: no such folder; expected a model folder (config.json) or a run that has saved a model"
        )
    raise UserError(
        f"{path}: has no config.json, best/ or last/; expected a model folder or a run that has saved a model"
    )


def _write_weights(folder: str | Path, module: nn.Module) -> str:
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    with replacing(Path(folder) / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
        return sha256_of(temporary)


def _write_description(folder: str | Path, config: BaseModel, card: str) -> None:
    write_text(Path(folder) / "README.md", card)
    write_json(Path(folder) / "config.json", config.model_dump(mode="json"))


def _read_config(folder: Path, model: type[Model]) -> Model:
    path = folder / "config.json"
    try:
        content: Any = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    expected = model.model_fields["format"].default
    found = content.get("format") if isinstance(content, dict) else None
    if found != expected:
        raise UserError(f"{path}: found format {found!r}, expected {expected!r}")
    return validate(model, content, path)


def _read_weights(folder: Path, module: nn.Module, expected_hash: str) -> None:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: missing; a model folder holds config.json and model.safetensors")
    found_hash = sha256_of(path)
    if found_hash != expected_hash:
        raise UserError(
            f"{path}: sha256 is {found_hash[:12]}…, config.json says {expected_hash[:12]}…: corrupted, or "
            "from another model"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    expected = module.state_dict()
    mistakes = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    mistakes += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())]
    mistakes += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if mistakes:
        more = f" and {len(mistakes) - 5} more" if len(mistakes) > 5 else ""
        raise UserError(f"{path}: does not fit config.json: {'; '.join(mistakes[:5])}{more}")
    module.load_state_dict(tensors, strict=True)
