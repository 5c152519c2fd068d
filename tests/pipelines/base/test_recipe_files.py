"""A mistake in a recipe is one line that names the file, the key, what was found and what was expected."""

from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from pipelines.base.documents import read_yaml
from pipelines.base.errors import UserError
from pipelines.base.recipe_files import dump, find_recipe, override, validate


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Flat(Strict):
    kind: Literal["flat"] = "flat"
    width: int = 4


class Deep(Strict):
    kind: Literal["deep"] = "deep"
    widths: tuple[int, ...] = (1,)


class Recipe(Strict):
    name: str
    net: Annotated[Flat | Deep, Field(discriminator="kind")] = Flat()
    rate: float = Field(default=0.1, gt=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"name": "a", "net": {"kind": "flat", "widht": 3}},
            r"r.yaml: net.widht: unknown key; did you mean 'width'\? .*one of: kind, width$",
        ),
        (
            {"name": "a", "net": {"kind": "flat", "width": "x"}},
            r"r.yaml: net.width: found 'x', expected: a valid integer",
        ),
        ({"name": "a", "net": {"kind": "wide"}}, r"r.yaml: net.kind: found 'wide', expected one of 'flat', 'deep'"),
        ({"name": "a", "net": {"kind": "deep", "widths": [1, "b"]}}, r"r.yaml: net.widths.1: found 'b'"),
        ({"name": "a", "net": {"width": 2}}, r"r.yaml: net.kind: missing"),
        ({"nmae": "a"}, r"r.yaml: name: missing"),
        ({"name": "a", "rate": 0}, r"r.yaml: rate: found 0, expected: greater than 0"),
        ({"name": "a", "rate": True}, r"r.yaml: rate: found True, expected a number. YAML reads"),
        ({"name": "a", "net": {"kind": "deep", "widths": [1, True]}}, r"r.yaml: net.widths.1: found True"),
        ({"name": False}, r"r.yaml: name: found False, .* YAML reads a bare yes"),
        ({"name": "a", "rate": "nan"}, r"r.yaml: rate: found .?nan"),
        ({"name": "a", "rate": float("inf")}, r"r.yaml: rate: found inf, expected a finite number"),
        ({"name": "a", "net": {"kind": "flat", "width": 2**63}}, r"r.yaml: net.width: found 9223372036854775808"),
        ({"name": "a", "x" * 1000: 1}, r"^.{0,300}$"),
        ({"name": "a", "rate": "x" * 1000}, r"^.{0,300}$"),
    ],
)
def test_mistakes_are_named(content, message):
    with pytest.raises(UserError, match=message):
        validate(Recipe, content, "r.yaml")


def test_overrides_merge_before_validation_and_a_new_kind_drops_old_keys():
    content = {"name": "a", "net": {"kind": "flat", "width": 3}}
    changed = override(content, ["net.width=5", "rate=1e-2"])
    assert changed["net"] == {"kind": "flat", "width": 5} and validate(Recipe, changed, "r").rate == 0.01
    swapped = override(content, ["net.kind=deep", "net.widths=[2, 3]"])
    assert validate(Recipe, swapped, "r").net == Deep(widths=(2, 3))
    assert override(content, ["net.kind=flat"])["net"]["width"] == 3
    assert content == {"name": "a", "net": {"kind": "flat", "width": 3}}


@pytest.mark.parametrize("text", ["width", "=3", "name.sub=1", "rate=[1"])
def test_a_malformed_override_is_quoted(text):
    with pytest.raises(UserError, match="override"):
        override({"name": "a"}, [text])


def test_the_resolved_recipe_reads_back_the_same():
    recipe = Recipe(name="a", net=Deep(widths=(2, 3)))
    assert validate(Recipe, yaml.safe_load(dump(recipe)), "r") == recipe


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [1\n", b"\xff\xfe\x00"])
def test_files_that_are_no_recipe_are_refused(tmp_path, content):
    path = tmp_path / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"r\.yaml"):
        read_yaml(path)


def test_shipped_recipes_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("configs/shapes/tokenizer.yaml").is_file()
    with pytest.raises(UserError, match="no such recipe"):
        find_recipe("configs/nothing.yaml")


@pytest.mark.parametrize("order", [("net.widths=[2, 3]", "net.kind=deep"), ("net.kind=deep", "net.widths=[2, 3]")])
def test_an_override_is_kept_whether_it_stands_before_or_after_the_kind(order):
    content = {"net": {"kind": "flat", "width": 3}}
    assert override(content, list(order)) == {"net": {"kind": "deep", "widths": [2, 3]}}
