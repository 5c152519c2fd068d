"""One reader of JSON and YAML. It has limits, so that a damaged or hostile file is a message and never a hang.

A document is UTF-8 text in a regular file. Keys are strings and occur once in their mapping; numbers are finite and
have a bounded number of digits; nesting and size are bounded; YAML has no aliases.
"""

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from pipelines.base.errors import UserError

MAX_JSON_BYTES = 256 * 2**20  # a manifest names every image that was left out
MAX_YAML_BYTES = 2**18  # the reader is written in Python: about 200 KiB a second
MAX_DEPTH = 64
MAX_DIGITS = 40


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: missing, unreadable, not JSON, or beyond a limit; names the file and the place.
    """
    return parse_json(read_text(path, MAX_JSON_BYTES), path)


def read_json_mapping(path: str | Path) -> dict[str, Any]:
    """As `read_json`, for a file that must hold a mapping (a JSON object)."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {_kind(content)} at the top, expected a mapping (a JSON object)")
    return content


def read_json_if_valid(path: str | Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where the file is absent or damaged. For notes that can be written again."""
    try:
        return read_json_mapping(path)
    except UserError:
        return None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: missing, unreadable, not YAML, not a mapping, or beyond a limit; names the file and the line.
    """
    content = parse_yaml(read_text(path, MAX_YAML_BYTES), path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {_kind(content)} at the top, expected a mapping of keys")
    return content


def parse_json(text: str, where: object) -> Any:
    """The value of a JSON text; `where` names it in messages."""
    _limit_json_depth(text, where)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            seen: set[str] = set()
            repeated = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise UserError(f"{where}: the key {_shown(repeated)} occurs twice in one mapping")
        return result

    def integer(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise UserError(f"{where}: found a number of {len(digits)} digits, expected at most {MAX_DIGITS}")
        return int(digits)

    def constant(name: str) -> NoReturn:
        raise UserError(f"{where}: found {name}, expected a finite number")

    def real(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else constant(_shown(digits))

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_int=integer, parse_float=real, parse_constant=constant)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error


def parse_yaml(text: str, where: object) -> Any:
    """The value of a YAML text; `where` names it in messages."""
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except _Refusal as error:
        line = error.mark.line + 1
        raise UserError(f"{where}: line {line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {_yaml_problem(error)}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML: a value does not fit its tag ({error})") from error
    finally:
        if loader is not None:
            loader.dispose()


def dump_yaml(content: Any) -> str:
    """YAML text that `parse_yaml` reads back: keys in their order, no aliases."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Refusal(yaml.MarkedYAMLError):
    """A document that YAML allows and smalti does not."""

    mark: Any
    problem: str

    def __init__(self, node: Any, problem: str):
        super().__init__(problem=problem, problem_mark=node.start_mark)
        self.mark = node.start_mark


class _Loader(yaml.SafeLoader):
    """SafeLoader with the limits of this module."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _Refusal(event, f"found the alias *{event.anchor}, expected the value itself")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Refusal(event, f"nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode) or key.tag not in (STRING, MERGE):
                spelled = key.value if isinstance(key, ScalarNode) else "a list or a mapping"
                raise _Refusal(key, f"found the key {_shown(spelled)}, which YAML reads as no string; put it in quotes")
            if key.value in seen:
                raise _Refusal(key, f"the key {_shown(key.value)} occurs twice in one mapping")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _number(loader: _Loader, node: ScalarNode) -> int:
    if len(node.value) > MAX_DIGITS:
        raise _Refusal(node, f"found a number of {len(node.value)} digits, expected at most {MAX_DIGITS}")
    return yaml.SafeLoader.construct_yaml_int(loader, node)


STRING, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_Loader.add_constructor("tag:yaml.org,2002:int", _number)
# A date stays the text that was written: no recipe has a date, and a wrong one (2026-02-30) would be an error.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_text(path: str | Path, limit: int = MAX_JSON_BYTES) -> str:
    """The UTF-8 text in a regular file.

    Raises:
        UserError: missing, unreadable, not UTF-8, or larger than `limit` bytes.
    """
    path = Path(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            found = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise UserError(f"{path}: is {found}; expected a file")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({cause})") from error
    if len(content) > limit:
        raise UserError(f"{path}: is larger than {limit:,} bytes, the most that a document of this kind may have")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start:,})") from error


def _limit_json_depth(text: str, where: object) -> None:
    """Refuse deep nesting before Python's recursive reader meets it. Brackets inside strings do not count."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    # A string that never ends is one token too: looked for again at each of its quotes, it would take quadratic time.
    for token in re.finditer(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', text, re.DOTALL):
        if token[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                line = text.count("\n", 0, token.start()) + 1
                raise UserError(f"{where}: line {line}: nested more than {MAX_DEPTH} levels deep")
        elif token[0] in "]}":
            depth -= 1


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _kind(content: Any) -> str:
    names = {
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "a boolean",
        dict: "a mapping",
    }
    return "nothing" if content is None else names.get(type(content), type(content).__name__)


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
