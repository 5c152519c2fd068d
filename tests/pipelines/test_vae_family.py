"""Every recipe of configs/vae_family, but for data and length: it trains, resumes, saves, loads and samples."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.base.recipe_inheritance import read_recipe
from pipelines.models.checkpoint import load_tokenizer
from pipelines.recipes.stages import TokenizerRecipe, load_recipe
from pipelines.train import train_recipe
from pipelines.training.loop import TrainingLoop
from tokenizer import evaluate

ROOT = Path(__file__).parents[2]
RECIPES = [
    path
    for path in sorted((ROOT / "configs" / "vae_family").rglob("*.yaml"))
    if read_recipe(path)["kind"] == "tokenizer"
]
every_recipe = pytest.mark.parametrize(
    "path", RECIPES, ids=[str(path.relative_to(ROOT / "configs" / "vae_family")) for path in RECIPES]
)
STEPS, STOP = 5, 3


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("pipelines.training.loop.draw_curves", lambda metrics, figure: None)


class Cut(Exception):
    pass


def small(path: Path, output: Path) -> TokenizerRecipe:
    """The recipe on a few drawn shapes of its own size. Shapes have 24 labels."""
    shapes = {"kind": "shapes", "train": 32, "validation": 8, "test": 8}
    training = {"steps": STEPS, "batch_size": 8, "validation_images": 8, "validate_every": 2, "save_every": 2}
    overrides = [f"training.{name}={value}" for name, value in training.items()]
    overrides += [f"data.source={json.dumps(shapes)}", f"output={output}", "training.log_every=1"]
    condition = read_recipe(path)["model"].get("condition")
    recipe = load_recipe(path, overrides + (["model.condition.num_classes=24"] if condition else []))
    assert isinstance(recipe, TokenizerRecipe)
    return recipe


def weights(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name / "model.safetensors").read_bytes() for name in ("best", "last")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of each recipe, trained once."""
    found: dict[Path, Path] = {}

    def run(path: Path) -> Path:
        if path not in found:
            found[path] = tmp_path_factory.mktemp(path.stem)
            train_recipe(small(path, found[path] / "run"))
        return found[path] / "run"

    return run


@every_recipe
def test_a_recipe_that_was_stopped_ends_with_the_same_weights(path, trained, tmp_path, monkeypatch):
    whole = trained(path)
    update = TrainingLoop.update

    def cut(self: TrainingLoop, batch: Any) -> None:
        if self.step == STOP:
            raise Cut
        update(self, batch)

    monkeypatch.setattr(TrainingLoop, "update", cut)
    recipe = small(path, tmp_path / "run")
    with pytest.raises(Cut):
        train_recipe(recipe)
    monkeypatch.undo()
    monkeypatch.setattr("pipelines.training.loop.draw_curves", lambda metrics, figure: None)
    train_recipe(recipe)
    assert weights(tmp_path / "run") == weights(whole)


@every_recipe
def test_a_stored_model_gives_what_its_training_gave(path, trained):
    folder = trained(path)
    recipe, model = small(path, folder), load_tokenizer(folder / "last").model
    images = torch.rand(3, model.config.channels, model.config.image_size, model.config.image_size)
    labels = torch.tensor([0, 5, -1]) if model.takes_labels else None
    streams = [torch.Generator().manual_seed(i) for i in range(3)]
    found = evaluate(model, images, recipe.objective, STEPS, streams, labels).figures
    assert all(value.isfinite().all() for value in found.values())
    if model.num_codes is None:
        assert model.sample(3, torch.Generator().manual_seed(0), labels).isfinite().all()


@every_recipe
def test_a_folder_from_before_an_option_existed_still_loads(path, trained, tmp_path):
    """An older version has written none of the options that have a default today."""
    (tmp_path / "old").mkdir()
    for file in (trained(path) / "last").iterdir():
        (tmp_path / "old" / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    now = load_tokenizer(trained(path) / "last")
    config["model"] = without_defaults(now.model.config)
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    then = load_tokenizer(tmp_path / "old")
    assert then.fingerprint == now.fingerprint and then.model.config == now.model.config


def without_defaults(config: Any) -> dict[str, Any]:
    """The options that are not at their defaults, and the kinds of blocks."""
    kept = config.model_dump(mode="json", exclude_defaults=True)
    full = config.model_dump(mode="json")

    def with_kinds(part: Any, whole: Any) -> Any:
        if isinstance(part, list):
            return [with_kinds(*pair) for pair in zip(part, whole, strict=True)]
        if not isinstance(part, dict):
            return part
        kinds = {"kind": whole["kind"]} if isinstance(whole, dict) and "kind" in whole else {}
        return kinds | {name: with_kinds(value, whole[name]) for name, value in part.items()}

    return with_kinds(kept, full)
