"""What a person sees: help with an example, and mistakes as one message with exit code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines import cli
from tests.tokenizer.members import members
from tokenizer import BottleneckConfig

ROOT = Path(__file__).parents[2]
COMMANDS = tuple(sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands))
BOTTLENECKS = ", ".join(repr(member.model_fields["kind"].default) for member in members(BottleneckConfig))


def smalti(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of the entry point, in this process."""
    monkeypatch.setattr(sys, "argv", ["smalti", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, *capsys.readouterr()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_with_an_example(command):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0 and f"Example: smalti {command} " in result.output


def test_a_reader_that_has_left_is_no_error_to_talk_about():
    """`smalti schema pipeline | head`."""
    end, pipe = os.pipe()
    os.close(end)
    command = [sys.executable, "-m", "pipelines", "schema", "pipeline"]
    result = subprocess.run(command, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True)
    os.close(pipe)
    assert result.returncode != 0 and result.stderr == ""


HEAVY = ("torch", "numpy", "PIL")
SLOW = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "sympy",
    "triton",
    "torchvision",
    "accelerate",
    "x_transformers",
    "zuko",
    "datasets",
    "pyarrow",
    "pandas",
    "fsspec",
    "matplotlib",
    "safetensors",
    "huggingface_hub",
    "transformers",
    "tensorboard",
)


def imported_by(*arguments: object) -> tuple[int, set[str], str]:
    """Exit code of a fresh `smalti …`, the modules that it imported, and what it said on stderr."""
    code = (
        "import sys\nfrom pipelines import cli\n"
        f"sys.argv = {['smalti', *map(str, arguments)]!r}\n"
        "try: cli.main()\n"
        "finally: print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    modules = next(line for line in done.stdout.splitlines() if line.startswith("MODULES"))
    return done.returncode, set(modules.split()[1:]), done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["sample", "-n", "0", "a", "-o", "b"]])
def test_help_and_a_mistake_on_the_command_line_import_little(arguments):
    _, modules, _ = imported_by(*arguments)
    assert not modules & {*HEAVY, *SLOW}


@pytest.mark.parametrize("command", [("train", "tokenizer"), ("train", "prior"), ("run", "pipeline")])
def test_a_mistake_in_a_recipe_imports_torch_and_no_other_slow_library(command):
    command, recipe = command
    code, modules, errors = imported_by(command, f"configs/shapes/{recipe}.yaml", "ouptut=x")
    assert code == 2 and not modules & set(SLOW)
    assert errors.startswith("smalti: ") and "did you mean 'output'" in errors and errors.count("\n") == 1


def test_a_recipe_that_is_no_recipe_imports_no_torch():
    code, modules, _ = imported_by("train", "nowhere.yaml")
    assert code == 2 and not modules & set(SLOW)


def test_the_printed_recipe_is_the_resolved_one(monkeypatch, capsys):
    code, out, _ = smalti(
        monkeypatch, capsys, "train", "configs/shapes/tokenizer.yaml", "training.steps=7", "--print-config"
    )
    printed = yaml.safe_load(out)
    assert code in (0, None) and printed["training"]["steps"] == 7
    assert printed["model"]["image_size"] == 32 and printed["model"]["channels"] == 3


def test_the_schema_knows_every_bottleneck(monkeypatch, capsys):
    code, out, _ = smalti(monkeypatch, capsys, "schema", "tokenizer")
    assert code in (0, None) and {m.__name__ for m in members(BottleneckConfig)} <= json.loads(out)["$defs"].keys()


@pytest.mark.parametrize("kind", cli.RecipeKind)
def test_every_kind_of_recipe_has_a_schema(monkeypatch, capsys, kind):
    code, out, _ = smalti(monkeypatch, capsys, "schema", kind)
    assert code in (0, None) and json.loads(out)["properties"]["kind"]["const"] == kind


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
            f"model.bottleneck.kind: found 'magic', expected one of {BOTTLENECKS}",
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
        ["evaluate", "nowhere", "--output", "out"],
        ["interpolate", "nowhere", "--from", "0", "--to", "1", "--output", "out"],
        ["interpolate", "nowhere", "--from", "0", "--output", "out"],
        ["traverse", "nowhere", "--output", "out"],
        ["traverse", "nowhere", "--latents", "0,b", "--output", "out"],
        ["anomaly", "nowhere", "--output", "out"],
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
