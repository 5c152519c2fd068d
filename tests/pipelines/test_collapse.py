"""The recipes of configs/collapse, shortened: training and `inspect` say what collapses, and guards rescue it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.base.recipe_inheritance import read_recipe
from pipelines.inspect import inspect
from pipelines.recipes.stages import load_recipe
from pipelines.train import train_recipe
from pipelines.training.loop import TrainingLoop

COLLAPSE = Path(__file__).parents[2] / "configs" / "collapse"
BASES = ("vae.yaml", "vqvae.yaml")
FEW = ["training.validation_images=200", "data.source.validation=200", "data.source.test=1"]
VAE = [*FEW, "training.steps=500", "training.validate_every=500"]
VQ = [*FEW, "training.steps=150", "training.validate_every=150", "data.source.train=500"]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("pipelines.training.loop.draw_curves", lambda metrics, figure: None)


def verdict(name: str, output: Path, overrides: list[str]) -> tuple[str, str]:
    train_recipe(load_recipe(COLLAPSE / name, [*overrides, f"output={output}"]))
    found = inspect(output)
    health = found.latent_health or found.health[0]
    return health.verdict, health.reason


def leaves(content: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Every option by its path; a part with a kind is one option, but for the bottleneck."""
    found = {}
    for key, value in content.items():
        inner = isinstance(value, dict) and ("kind" not in value or key == "bottleneck")
        found |= leaves(value, f"{path}{key}.") if inner else {path + key: value}
    return found


@pytest.mark.parametrize("recipe", sorted(COLLAPSE.glob("*.yaml")), ids=lambda recipe: recipe.stem)
def test_a_rescue_changes_one_option(recipe):
    basis = yaml.safe_load(recipe.read_text()).get("extends")
    if basis is None:
        assert recipe.name in BASES
        return
    ours, theirs = leaves(read_recipe(recipe)), leaves(read_recipe(COLLAPSE / basis))
    changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert len(changed - {"output"}) == 1


@pytest.mark.slow
def test_a_vae_driven_into_collapse_is_called_so_and_annealing_rescues_it(tmp_path, capsys):
    assert verdict("vae.yaml", tmp_path / "vae", VAE)[0] == "collapsed"
    shown = capsys.readouterr()
    assert "smalti: the latent has collapsed: 0 of 10 units active" in shown.err and "collapsed: 0 of 10" in shown.out
    short = "objective.weights.kl.steps=350"
    assert verdict("linear_annealing.yaml", tmp_path / "annealed", [*VAE, short])[0] == "healthy"
    assert "collapsed" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_vqvae_driven_into_collapse_is_called_so_and_restarts_rescue_it(tmp_path, capsys):
    assert verdict("vqvae.yaml", tmp_path / "vqvae", VQ)[0] == "collapsed"
    shown = capsys.readouterr()
    assert "smalti: the codebook has collapsed" in shown.err and "collapsed: " in shown.out
    assert verdict("code_restarts.yaml", tmp_path / "restarted", VQ)[0] == "healthy"
    assert "collapsed" not in capsys.readouterr().err


class Cut(Exception):
    pass


@pytest.mark.slow
def test_a_run_in_the_middle_of_training_is_inspected(tmp_path, monkeypatch, capsys):
    update = TrainingLoop.update

    def inspected(self: TrainingLoop, batch: Any) -> None:
        if self.step == 70:
            inspect(tmp_path / "run")
            raise Cut
        update(self, batch)

    monkeypatch.setattr(TrainingLoop, "update", inspected)
    with pytest.raises(Cut):
        verdict("vqvae.yaml", tmp_path / "run", [*VQ, "training.validate_every=60", "training.log_every=10"])
    shown = capsys.readouterr().out
    assert "step 70 of 150, unfinished" in shown and "collapsed" in shown
