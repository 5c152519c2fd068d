"""The architecture: imports point down, between files and between folders; no circles; files of a readable size."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tokenizer", "prior", "pipelines")
MODULES = sorted(path for floor in PACKAGES for path in (ROOT / floor).rglob("*.py"))
MAY_IMPORT = {"tokenizer": {"tokenizer"}, "prior": {"prior"}, "pipelines": {"tokenizer", "prior", "pipelines"}}
OUTSIDE = {
    "tokenizer": {"torch", "zuko", "einops", "pydantic", "jaxtyping"},
    "prior": {"torch", "einops", "pydantic", "jaxtyping", "x_transformers", "tokenizers"},
}


# Within pipelines/, low to high. The files at its top are the commands; the command line stands above them.
LAYERS = ("base", "data", "models", "tokens", "training", "evaluate", "recipes", "commands", "cli")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports(path: Path, inside_functions: bool = True) -> set[str]:
    """Modules that a file imports; submodules are named in full."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inside_functions else tree.body:
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
    package = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name in imports(path)}
    assert tops & {*PACKAGES, "tests", "configs"} <= MAY_IMPORT[package]
    if package in OUTSIDE:
        assert tops - set(sys.stdlib_module_names) - {package} <= OUTSIDE[package]


def distributions(paths: list[Path], inside_functions: bool = True) -> set[str]:
    """Distributions from outside that the files import, by the names under which they are installed."""
    tops = {name.split(".")[0] for path in paths for name in imports(path, inside_functions)}
    tops -= set(sys.stdlib_module_names)
    renamed = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}
    return {renamed.get(top, top.replace("_", "-")) for top in tops - {*PACKAGES, "tests"}}


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}


def extras() -> set[str]:
    """Distributions of which a user may do without."""
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return declared(
        [requirement for name in optional if name not in ("dev", "bench") for requirement in optional[name]]
    )


def test_the_packages_import_what_is_declared_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert distributions(MODULES) - extras() == declared(project["dependencies"])


def test_an_extra_is_imported_where_it_is_used():
    assert not distributions(MODULES, inside_functions=False) & extras()


def test_the_tests_import_only_what_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = distributions(list((ROOT / "tests").rglob("*.py")))
    found -= {"pythae"}  # a peer of a benchmark in an environment of its own: it needs an old pydantic
    assert found <= declared(project["dependencies"] + project["optional-dependencies"]["dev"])


def layer_of(name: str) -> int:
    """The rank of a module of `pipelines`: its folder's, or that of the commands or of the command line."""
    parts = name.split(".")
    if len(parts) == 1 or parts[1] in ("cli", "__main__"):
        return LAYERS.index("cli")
    return LAYERS.index(parts[1] if parts[1] in LAYERS else "commands")


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.relative_to(ROOT).parts[0] == "pipelines"], ids=name_of
)
def test_imports_point_down_between_the_folders_of_pipelines(path):
    own, found = layer_of(name_of(path)), imports(path)
    upward = {name for name in found if name.startswith("pipelines") and layer_of(name) > own}
    assert not upward


def test_no_two_folders_import_each_other():
    def folder(name):
        return ".".join(name.split(".")[:2]) if name.count(".") > 1 else name

    graph: dict[str, set[str]] = {}
    for path in MODULES:
        own = folder(name_of(path))
        graph.setdefault(own, set()).update({folder(n) for n in imports(path) if n in NAMES} - {own})
    graphlib.TopologicalSorter(graph).prepare()


def test_every_folder_of_pipelines_is_a_layer():
    assert {path.name for path in (ROOT / "pipelines").iterdir() if path.is_dir() and any(path.glob("*.py"))} <= set(
        LAYERS
    )


def test_no_circles():
    graph = {name_of(path): {n for n in imports(path) if n in NAMES} - {name_of(path)} for path in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_and_named_for_a_concept(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"utils", "util", "common", "misc", "helpers", "helper"}


def test_only_the_packages_stand_at_the_top():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    files = {
        "pyproject.toml",
        "README.md",
        "Makefile",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        ".ci",
        ".gitignore",
    }
    assert tops <= {*PACKAGES, "configs", "tests", *files}
