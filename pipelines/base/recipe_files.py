"""Recipes: YAML plus `key.sub=value` overrides, merged, then validated by the pydantic models that own the keys."""

import difflib
import importlib.util
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipelines.base.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def find_recipe(path: str | Path) -> Path:
    """`path` itself, or the recipe of that name shipped with the package (`configs/…` works from any folder)."""
    path = Path(path)
    if path.is_file():
        return path
    shipped = importlib.util.find_spec("configs")
    for root in shipped.submodule_search_locations or [] if shipped else []:
        inside = Path(root).parent / path if path.parts[:1] == ("configs",) else Path(root) / path
        if inside.is_file():
            return inside
    raise UserError(
        f"{path}: no such recipe; expected a YAML file, or a shipped one such as configs/shapes/pipeline.yaml"
    )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: unreadable, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {type(content).__name__} at the top, expected a mapping of keys")
    return content


def override(content: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`content` with each `key.sub=value` (value read as YAML) set. A changed `kind` drops the old variant's keys."""
    result = _copied(content)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"override {assignment!r}: expected key.sub=value")
        try:
            value = yaml.safe_load(text) if text else None
        except yaml.YAMLError as error:
            raise UserError(f"override {assignment!r}: the value is not valid YAML: {error}") from error
        *parents, last = key.split(".")
        node = result
        for depth, parent in enumerate(parents):
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                found = ".".join(parents[: depth + 1])
                raise UserError(f"override {assignment!r}: {found} is {child!r}, which has no key {last!r}")
            node = child
        if last == "kind" and node.get("kind") != value:
            node.clear()
        node[last] = value
    return result


def _copied(node: Any) -> Any:
    return {key: _copied(value) for key, value in node.items()} if isinstance(node, dict) else node


def validate(model: type[Model], content: Any, where: str | Path) -> Model:
    """`content` as a `model`.

    Raises:
        UserError: one line per mistake, each naming file, key, what was found and what was expected.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [describe(detail, model, content) for detail in error.errors()]
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from error


def describe(detail: Any, model: type[BaseModel], content: Any) -> str:
    """One pydantic error in words that name the key as the user wrote it."""
    path = [part for part in _as_written(detail["loc"], content)]
    key = ".".join(str(part) for part in path) or "(the whole recipe)"
    found = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            legal = _legal_keys(model, path[:-1], content)
            close = difflib.get_close_matches(str(path[-1]), legal, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            return f"{key}: unknown key{hint} Expected one of: {', '.join(legal)}"
        case "missing":
            return f"{key}: missing; expected a value"
        case "union_tag_invalid":
            return f"{key}.kind: found {detail['ctx']['tag']!r}, expected one of {detail['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return f"{key}.kind: missing; expected one of the kinds of this block"
        case "value_error":
            return f"{key}: {detail['ctx']['error']}"
        case _:
            return f"{key}: found {found!r}, expected: {detail['msg'].removeprefix('Input should be ')}"


def _as_written(location: tuple[Any, ...], content: Any) -> list[Any]:
    """pydantic puts the tag of a union into the location; keep only the parts that are keys of the recipe."""
    written, node = [], content
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(node, dict) and part not in node and not last and node.get("kind") == part:
            continue
        written.append(part)
        try:
            node = node[part]
        except (KeyError, TypeError, IndexError):
            node = None
    return written


def _legal_keys(model: type[BaseModel], path: list[Any], content: Any) -> list[str]:
    """The keys that the block at `path` may have, following the kind that the recipe chose."""
    candidates: list[type[BaseModel]] = [model]
    node = content
    for part in path:
        fields = [candidate.model_fields.get(str(part)) for candidate in candidates]
        candidates = [found for field in fields if field for found in _models(field.annotation)]
        node = node.get(part) if isinstance(node, dict) else None
        kind = node.get("kind") if isinstance(node, dict) else None
        chosen = [
            c
            for c in candidates
            if kind is not None and "kind" in c.model_fields and c.model_fields["kind"].default == kind
        ]
        candidates = chosen or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, typing.Annotated, types.UnionType, list, tuple, dict):
        return [found for argument in typing.get_args(annotation) for found in _models(argument)]
    return []


def dump(recipe: BaseModel) -> str:
    """The resolved recipe as YAML, every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten_keys(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            result |= flatten_keys(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
