"""What a person sees: help with an example, and mistakes as one message with exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines import cli

ROOT = Path(__file__).parents[2]
VERBS = ("train", "encode", "decode", "sample", "reconstruct", "run", "inspect", "schema")


def smalti(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of the entry point, in this process."""
    monkeypatch.setattr(sys, "argv", ["smalti", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, *capsys.readouterr()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_with_an_example(verb):
    result = CliRunner().invoke(cli.app, [verb, "--help"])
    assert result.exit_code == 0 and f"Example: smalti {verb} " in result.output


def test_help_does_not_wait_for_torch():
    code = "import sys; from pipelines import cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_printed_recipe_is_the_resolved_one(monkeypatch, capsys):
    code, out, _ = smalti(
        monkeypatch, capsys, "train", "configs/shapes/tokenizer.yaml", "training.steps=7", "--print-config"
    )
    printed = yaml.safe_load(out)
    assert code in (0, None) and printed["training"]["steps"] == 7
    assert printed["model"]["image_size"] == 32 and printed["model"]["channels"] == 3


def test_the_schema_knows_every_bottleneck(monkeypatch, capsys):
    code, out, _ = smalti(monkeypatch, capsys, "schema", "tokenizer")
    assert code in (0, None) and {"VQConfig", "FSQConfig", "GaussianConfig"} <= json.loads(out)["$defs"].keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.bottleneck.num_cods=8"],
            "tokenizer.yaml: model.bottleneck.num_cods: unknown key; did you mean 'num_codes'",
        ),
        (["training.steps=many"], "training.steps: found 'many'"),
        (
            ["model.bottleneck.kind=magic"],
            "model.bottleneck.kind: found 'magic', expected one of 'vq', 'fsq', 'gaussian'",
        ),
        (["model.image_size=64"], "expected the same"),
        (["objective.weights={nll: 1, kl: 1}"], "commitment"),
        (["data.source={kind: huggingface, path: ./nowhere}"], "nowhere"),
        (["training.precision=fp16"], "fp16"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_message(monkeypatch, capsys, tmp_path, overrides, message):
    output = tmp_path / "out"
    arguments = ["train", "configs/shapes/tokenizer.yaml", f"output={output}", *overrides]
    code, _, errors = smalti(monkeypatch, capsys, *arguments)
    assert code == 2 and message in errors and "Traceback" not in errors
    assert not (output / "state").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "nowhere.yaml"],
        ["train", "configs/shapes/pipeline.yaml"],
        ["run", "configs/shapes/tokenizer.yaml"],
        ["encode", "nowhere", "--output", "out"],
        ["decode", "nowhere", "--output", "out"],
        ["sample", "./no where", "--output", "out"],
        ["reconstruct", "nowhere", "--output", "out"],
        ["inspect", "nowhere"],
        ["train", "configs/shapes/prior.yaml", "tokens=nowhere"],
        ["train"],
        ["dance"],
    ],
)
def test_what_is_missing_is_named(monkeypatch, capsys, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    code, _, errors = smalti(monkeypatch, capsys, *arguments)
    assert code == 2 and errors.strip() and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(monkeypatch):
    from pipelines.base.errors import UserError

    monkeypatch.setattr(sys, "argv", ["smalti", "inspect", "nowhere", "--debug"])
    with pytest.raises(UserError):
        cli.main()
