"""`extends: other.yaml`: a recipe that says only what it changes of another one."""

from pathlib import Path
from typing import Any

from pipelines.base.documents import read_yaml
from pipelines.base.errors import UserError
from pipelines.base.recipe_files import find_recipe

MAX_CHAIN = 8  # recipes, each of which extends the next


def read_recipe(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a YAML recipe, laid over that of the recipe that it extends.

    Blocks are merged key by key. A value, a list, or a block of another `kind` takes the place of the old one. The name
    after `extends` is looked up beside the file, then as `find_recipe` does. `extending`: the recipes that led here.

    Raises:
        UserError: as `read_yaml` and `find_recipe`; a recipe extends itself, or the chain is too long.
    """
    content = read_yaml(path)
    if "extends" not in content:
        return content
    name = content.pop("extends")
    if not isinstance(name, str):
        raise UserError(f"{path}: extends: found {name!r}, expected the name of a recipe")
    parent = path.parent / name
    if not parent.is_file():
        parent = find_recipe(name)
    chain = (*extending, path.resolve())
    if parent.resolve() in chain:
        raise UserError(f"{path}: extends: {name} extends this recipe in turn")
    if len(chain) == MAX_CHAIN:
        raise UserError(f"{path}: extends: found a chain of more than {MAX_CHAIN} recipes")
    return merged(read_recipe(parent, chain), content)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`; neither is changed."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            value = merged(old, value)
        result[key] = value
    return result
