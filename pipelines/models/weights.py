"""The weights of a model: a safetensors file that is checked against the model before anything is allocated."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pipelines.base.atomic_files import replacing, sha256_of
from pipelines.base.errors import UserError
from tokenizer.options import TRAINING_ONLY

Model = TypeVar("Model", bound=nn.Module)
Shapes = dict[str, tuple[int, ...]]

WEIGHTS = "model.safetensors"
ALWAYS_ALLOWED = 2**16  # an integer up to this one is never too large for a configuration
SPARE_PARAMETERS = 64  # a module may register a parameter and drop it again


def write_weights(folder: str | Path, module: nn.Module) -> str:
    """Write `model.safetensors` into the folder; returns its sha256."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with replacing(Path(folder) / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
        return sha256_of(temporary)


def load_model(folder: Path, config: BaseModel, build: Callable[[], Model], expected_sha256: str) -> Model:
    """The model that `build` makes of `config`, with the weights of the folder.

    The header of the file is compared with the model on the meta device first: whatever numbers a configuration holds,
    nothing larger than the file is allocated.

    Raises:
        UserError: weights missing, corrupted, from another model, or of other shapes than the configuration says.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: missing; a model folder holds config.json and {WEIGHTS}")
    found = _shapes_in(path)
    expected = _expected_shapes(folder / "config.json", config, build, found)
    _compare(path, found, expected)
    found_sha256 = sha256_of(path)
    if found_sha256 != expected_sha256:
        raise UserError(
            f"{path}: sha256 is {found_sha256[:12]}…, config.json says {expected_sha256[:12]}…: corrupted, or "
            "from another model"
        )
    model = build()
    model.load_state_dict(load_file(path), strict=True)
    return model


def _shapes_in(path: Path) -> Shapes:
    """The shape of every tensor, by the file's header."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _expected_shapes(where: Path, config: BaseModel, build: Callable[[], Model], found: Shapes) -> Shapes:
    """The shape of every tensor of the model that the configuration describes; nothing is allocated."""
    elements = max(ALWAYS_ALLOWED, sum(prod(shape) for shape in found.values()))
    for key, number in _integers(config):
        if abs(number) > elements:
            raise UserError(f"{where}: model.{key}: found {number}, more than {WEIGHTS} has numbers in all")
    try:
        with torch.device("meta"), _at_most(len(found) + SPARE_PARAMETERS):
            return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    except (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(f"{where}: describes a model that {WEIGHTS} does not hold ({cause})") from error


def _compare(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    mistakes = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    mistakes += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    mistakes += [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    if mistakes:
        more = f" and {len(mistakes) - 5} more" if len(mistakes) > 5 else ""
        raise UserError(f"{path}: does not fit config.json: {'; '.join(mistakes[:5])}{more}")


def _integers(content: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every integer in a configuration that may decide a shape, with its key: not those of training alone."""
    if isinstance(content, BaseModel):
        for name, field in type(content).model_fields.items():
            if not any(mark is TRAINING_ONLY for mark in field.metadata):
                yield from _integers(getattr(content, name), f"{key}.{name}" if key else name)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _integers(value, key)
    elif isinstance(content, int) and not isinstance(content, bool):
        yield key, content


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Stop building a model once it has more parameters: a depth of 10^6 takes minutes even without memory."""
    registered = 0

    def count(*_: object) -> None:
        nonlocal registered
        registered += 1
        if registered > parameters:
            raise OverflowError("it has more layers")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
