"""The house stands: imports point down, no circles, rooms of a readable size with telling names."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("tokenizer", "prior", "pipelines")
MODULES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
MAY_IMPORT = {"tokenizer": {"tokenizer"}, "prior": {"prior"}, "pipelines": {"tokenizer", "prior", "pipelines"}}
OUTSIDE = {
    "tokenizer": {"torch", "einops", "pydantic", "jaxtyping"},
    "prior": {"torch", "einops", "pydantic", "jaxtyping", "x_transformers", "tokenizers"},
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports(path: Path, lazy: bool = True) -> set[str]:
    """Modules that a file imports; submodules are named in full. `lazy` includes imports inside functions."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazy else tree.body
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in NAMES else str(node.module))
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    floor = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name in imports(path)}
    assert tops & {*FLOORS, "tests", "configs"} <= MAY_IMPORT[floor]
    if floor in OUTSIDE:
        assert tops - set(sys.stdlib_module_names) - {floor} <= OUTSIDE[floor]


def test_no_circles():
    graph = {name_of(path): {n for n in imports(path, lazy=False) if n in NAMES} - {name_of(path)} for path in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_a_room(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"utils", "util", "common", "misc", "helpers", "helper"}


def test_only_the_floors_stand_at_the_top():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    files = {"pyproject.toml", "README.md", "Makefile", "LICENSE", "CHANGELOG.md", ".ci", ".gitignore"}
    assert tops <= {*FLOORS, "configs", "tests", *files}
