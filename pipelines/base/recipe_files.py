"""Recipes: YAML plus `key.sub=value` overrides, merged, then validated by the pydantic models that own the keys."""

import difflib
import importlib.util
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.base.documents import dump_yaml, parse_yaml
from pipelines.base.errors import UserError
from pipelines.base.redaction import redact

Model = TypeVar("Model", bound=BaseModel)
MAX_LINES = 20  # mistakes that one message lists


def find_recipe(path: str | Path) -> Path:
    """`path` itself, or the recipe of that name shipped with the package (`configs/…` works from any folder)."""
    path = Path(path)
    if _is_file(path):
        return path
    shipped = importlib.util.find_spec("configs")
    for root in shipped.submodule_search_locations or [] if shipped else []:
        inside = Path(root).parent / path if path.parts[:1] == ("configs",) else Path(root) / path
        if _is_file(inside):
            return inside
    raise UserError(
        f"{path}: no such recipe; expected a YAML file, or a shipped one such as configs/shapes/pipeline.yaml"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return False


def override(content: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`content` with each `key.sub=value` (value read as YAML) set. A changed `kind` drops the recipe's keys of the old
    variant; keys of the same block that are overridden, before or after it, are kept.
    """
    result = _copied(content)
    for index, assignment in enumerate(assignments):
        key = assignment.partition("=")[0]
        if _assign(result, assignment):
            block = key.removesuffix("kind")
            for earlier in assignments[:index]:
                if earlier.startswith(block) and earlier.partition("=")[0] != key:
                    _assign(result, earlier)
    return result


def _assign(content: dict[str, Any], assignment: str) -> bool:
    """Set one key in place; returns whether this has changed the `kind` of a block."""
    key, equals, text = assignment.partition("=")
    where = f"override {_shortened(assignment)}"
    if not equals or not all(key.split(".")):
        raise UserError(f"{where}: expected key.sub=value")
    value = parse_yaml(text, where) if text else None
    *parents, last = key.split(".")
    node = content
    for depth, parent in enumerate(parents):
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            found = ".".join(parents[: depth + 1])
            raise UserError(f"{where}: {found} is {_shortened(child)}, which has no key {last!r}")
        node = child
    changed = last == "kind" and node.get("kind") != value
    if changed:
        node.clear()
    node[last] = value
    return changed


def _copied(node: Any) -> Any:
    return {key: _copied(value) for key, value in node.items()} if isinstance(node, dict) else node


def validate(model: type[Model], content: Any, where: str | Path) -> Model:
    """`content` as a `model`.

    Raises:
        UserError: one line per mistake, each naming file, key, what was found and what was expected.
    """
    _refuse_impossible_numbers(content, where)
    try:
        found = model.model_validate(content)
    except (ArithmeticError, MemoryError, RecursionError) as error:
        raise UserError(f"{where}: holds a number that no machine can hold ({error})") from error
    except ValidationError as error:
        lines = [format_error(detail, model, content) for detail in error.errors()]
        more = [f"… and {len(lines) - MAX_LINES} more mistakes"] if len(lines) > MAX_LINES else []
        raise UserError("\n".join(f"{where}: {line}" for line in lines[:MAX_LINES] + more)) from error
    dumped = found.model_dump()
    _refuse_impossible_numbers(dumped, where)  # a text such as "nan" may have become a number
    _refuse_booleans(content, dumped, where)
    return found


def _refuse_booleans(content: Any, validated: Any, where: str | Path, key: str = "") -> None:
    """Raise UserError where true or false was taken for the number 1 or 0."""
    match content, validated:
        case dict(), dict():
            for name, value in content.items():
                _refuse_booleans(value, validated.get(name), where, f"{key}.{name}" if key else str(name))
        case list() | tuple(), list() | tuple():
            for index, pair in enumerate(zip(content, validated, strict=False)):
                _refuse_booleans(*pair, where, f"{key}.{index}")
        case bool(), int() | float() if not isinstance(validated, bool):
            raise UserError(f"{where}: {key}: found {content}, expected a number{_boolean_hint(content, '')}")


def _refuse_impossible_numbers(content: Any, where: str | Path, key: str = "") -> None:
    """Raise UserError for a number that is not finite, or a whole number beyond 64 bits, anywhere in `content`."""
    match content:
        case dict():
            for name, value in content.items():
                _refuse_impossible_numbers(value, where, f"{key}.{name}" if key else str(name))
        case list() | tuple():
            for index, value in enumerate(content):
                _refuse_impossible_numbers(value, where, f"{key}.{index}")
        case float() if not math.isfinite(content):
            raise UserError(f"{where}: {key}: found {content}, expected a finite number")
        case int() if not -(2**63) <= content < 2**63:
            raise UserError(f"{where}: {key}: found {content}, expected a number of at most 64 bits")


def format_error(detail: Any, model: type[BaseModel], content: Any) -> str:
    """One pydantic error in words that name the key as the user wrote it."""
    path = [part for part in _as_written(detail["loc"], content)]
    key = ".".join(str(part) for part in path) or "(the whole recipe)"
    found = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            legal = _legal_keys(model, path[:-1], content)
            close = difflib.get_close_matches(str(path[-1]), legal, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            return f"{_cut(key)}: unknown key{hint} Expected one of: {', '.join(legal)}"
        case "missing":
            return f"{key}: missing; expected a value"
        case "union_tag_invalid":
            tag, kinds = _shortened(detail["ctx"]["tag"]), detail["ctx"]["expected_tags"]
            return f"{key}.kind: found {tag}, expected one of {kinds}"
        case "union_tag_not_found":
            return f"{key}.kind: missing; expected one of the kinds of this block"
        case "value_error":
            return f"{key}: {detail['ctx']['error']}"
        case _:
            expected = detail["msg"].removeprefix("Input should be ")
            return f"{key}: found {_shortened(found)}, expected: {expected}{_boolean_hint(found, detail['type'])}"


def _boolean_hint(found: Any, mistake: str) -> str:
    """YAML 1.1 reads some words as true or false, to the surprise of whoever meant the word."""
    if not isinstance(found, bool) or mistake.startswith("bool"):
        return ""
    return ". YAML reads a bare yes, no, on or off as true or false; put the word in quotes if it is meant"


def _shortened(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _as_written(location: tuple[Any, ...], content: Any) -> list[Any]:
    """pydantic puts the tag of a union into the location; keep only the parts that are keys of the recipe."""
    written, node = [], content
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(node, dict) and part not in node and not last and node.get("kind") == part:
            continue
        if index and not isinstance(part, int) and not isinstance(node, dict):  # a number or a list has no names in it
            continue
        written.append(part)
        try:
            node = node[part] if isinstance(node, (dict, list)) else None
        except (KeyError, TypeError, IndexError):
            node = None
    return written


def _legal_keys(model: type[BaseModel], path: list[Any], content: Any) -> list[str]:
    """The keys that the block at `path` may have, following the kind that the recipe chose."""
    candidates: list[type[BaseModel]] = [model]
    node = content
    for part in path:
        if isinstance(node, list):  # its entries have the type of the whole
            node = node[part] if isinstance(part, int) and part < len(node) else None
            candidates = _of_kind(candidates, node)
            continue
        fields = [candidate.model_fields.get(str(part)) for candidate in candidates]
        candidates = [found for field in fields if field for found in _models(field.annotation)]
        node = node.get(part) if isinstance(node, dict) else None
        candidates = _of_kind(candidates, node)
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _of_kind(candidates: list[type[BaseModel]], node: Any) -> list[type[BaseModel]]:
    """Those of the kind that the recipe chose, all where it chose none."""
    kind = node.get("kind") if isinstance(node, dict) else None
    chosen = [
        c
        for c in candidates
        if kind is not None and "kind" in c.model_fields and c.model_fields["kind"].default == kind
    ]
    return chosen or candidates


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, typing.Annotated, types.UnionType, list, tuple, dict):
        return [found for argument in typing.get_args(annotation) for found in _models(argument)]
    return []


def dump(recipe: BaseModel) -> str:
    """The resolved recipe as YAML, every default spelled out, secrets left out: copies of a recipe are published."""
    return dump_yaml(redact(recipe.model_dump(mode="json")))


def flatten_keys(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            result |= flatten_keys(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
