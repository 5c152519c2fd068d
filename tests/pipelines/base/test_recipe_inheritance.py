from pathlib import Path

import pytest

from pipelines.base.errors import UserError
from pipelines.base.recipe_inheritance import MAX_CHAIN, read_recipe
from pipelines.recipes.stages import load_recipe

ROOT = Path(__file__).parents[3]


def write(folder: Path, **recipes: str) -> Path:
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(recipes))}.yaml"


def test_blocks_are_merged_and_values_and_lists_replaced(tmp_path):
    top = write(
        tmp_path,
        top="extends: below.yaml\na: {b: 3, list: [9]}\nnew: null",
        below="a: {b: 1, c: 2, list: [1, 2]}\nkept: yes",
    )
    assert read_recipe(top) == {"a": {"b": 3, "c": 2, "list": [9]}, "kept": True, "new": None}


def test_a_block_of_another_kind_takes_the_place_of_the_old_one(tmp_path):
    below = "one: {kind: x, a: 1}\ntwo: {kind: x, a: 1}\nthree: {kind: x, a: 1}\nfour: {a: 1}"
    above = "extends: below.yaml\none: {kind: y, b: 2}\ntwo: {b: 2}\nthree: {kind: x, b: 2}\nfour: {kind: y}"
    assert read_recipe(write(tmp_path, top=above, below=below)) == {
        "one": {"kind": "y", "b": 2},
        "two": {"kind": "x", "a": 1, "b": 2},
        "three": {"kind": "x", "a": 1, "b": 2},
        "four": {"kind": "y"},
    }


def test_a_recipe_may_extend_one_that_extends_another(tmp_path):
    top = write(
        tmp_path, top="extends: middle.yaml\na: 3", middle="extends: low.yaml\na: 2\nb: 2", low="a: 1\nb: 1\nc: 1"
    )
    assert read_recipe(top) == {"a": 3, "b": 2, "c": 1}


def test_a_shipped_recipe_is_found_by_its_name(tmp_path):
    top = write(tmp_path, top="extends: configs/shapes/tokenizer.yaml\nseed: 7")
    assert load_recipe(top).model_dump() | {"seed": 7} == load_recipe(top).model_dump()
    assert load_recipe(top).seed == 7 and load_recipe(ROOT / "configs/shapes/tokenizer.yaml").seed != 7


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ({"top": "extends: top.yaml"}, "top.yaml: extends: top.yaml extends this recipe in turn"),
        ({"top": "extends: low.yaml", "low": "extends: top.yaml"}, "low.yaml: extends: top.yaml extends this recipe"),
        ({"top": "extends: gone.yaml"}, "gone.yaml: no such recipe"),
        ({"top": "extends: [1]"}, "extends: found \\[1\\], expected the name of a recipe"),
        (
            {f"r{i}": f"extends: r{i + 1}.yaml" for i in range(MAX_CHAIN)} | {f"r{MAX_CHAIN}": "a: 1"},
            f"a chain of more than {MAX_CHAIN} recipes",
        ),
    ],
)
def test_what_cannot_be_extended_is_named(tmp_path, recipes, message):
    with pytest.raises(UserError, match=message):
        read_recipe(write(tmp_path, **recipes))


def test_a_chain_may_be_as_long_as_allowed(tmp_path):
    recipes = {f"r{i}": f"extends: r{i + 1}.yaml" for i in range(MAX_CHAIN - 1)} | {f"r{MAX_CHAIN - 1}": "a: 1"}
    assert read_recipe(write(tmp_path, **recipes)) == {"a": 1}
