"""README is true: its tree is the disk's, its commands are the program's, its recipes and pictures exist."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines import cli
from pipelines.base.recipe_inheritance import read_recipe
from pipelines.recipes.pipeline import load_pipeline
from pipelines.recipes.stages import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))


def tree_block() -> str:
    start = README.index("```\ntokenizer/") + len("```\n")
    return README[start : README.index("```", start)]


def test_every_folder_stands_in_the_tree_and_nothing_else_does():
    named, parents = set(), []
    for line in tree_block().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], line.split()[0].rstrip("/")]
        named.add("/".join(parents))
    packages = [ROOT / name for name in ("tokenizer", "prior", "pipelines")]
    folders = {path.parent for package in packages for path in package.rglob("*.py")}
    assert named == {str(folder.relative_to(ROOT)) for folder in folders} | {"configs", "tests"}


def test_every_command_that_readme_shows_exists():
    shown = set(re.findall(r"^smalti (\w+)", README, re.M))
    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert shown == commands
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", README, re.M)) <= targets


@pytest.mark.parametrize("options", re.findall(r"^smalti (.+?)(?:\s+#.*)?$", README, re.M))
def test_shown_options_are_known(options):
    verb, *rest = options.split()
    text = CliRunner().invoke(cli.app, [verb, "--help"]).output
    for word in rest:
        if word.startswith("-"):
            assert re.search(rf"(^|[\s,]){re.escape(word)}\b", text), f"{verb} has no {word}"


def test_links_and_pictures_exist_and_are_small():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        path = ROOT / target
        assert path.exists(), target
        if path.suffix == ".png":
            assert path.stat().st_size < 300_000, target


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_recipe_is_valid_and_its_header_holds_its_command(path):
    name = str(path.relative_to(ROOT))
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    pipeline = read_recipe(path)["kind"] == "pipeline"
    load_pipeline(path) if pipeline else load_recipe(path)
    assert f"smalti {'run' if pipeline else 'train'} {name}" in header
    page = path.parent / "README.md"  # of a family of recipes
    assert name in README or (
        page.exists() and path.name in page.read_text() and f"{path.parent.name}/README" in README
    )
