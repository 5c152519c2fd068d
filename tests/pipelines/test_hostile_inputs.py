"""Inputs that no command can use: one message on stderr, exit code 2, nothing written. `tests/benchmarks/
hostile_inputs/` holds hundreds more, with limits of time and memory."""

import shutil
import sys
from pathlib import Path

import pytest

from pipelines import cli
from tests.benchmarks.hostile_inputs.case import BYTES, SECONDS, Case, Outcome
from tests.benchmarks.hostile_inputs.families import all_cases
from tests.benchmarks.hostile_inputs.fixture import TOKENIZER as RECIPE


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs `smalti` in a folder with a sound recipe; returns what it says, having checked how it says it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["smalti", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.strip() and "Traceback" not in said and len(said) < 4000
        assert not (tmp_path / "out").exists()
        return said

    return run


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "nothing at the top"),
        ("- a\n", "a list at the top"),
        (b"\xff\xfe\x00", "UTF-8"),
        ("a: [1", "line"),
        ("a: &a [*a]", "alias"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested"),
        ("seed: " + "9" * 5000, "digits"),
        (RECIPE + "seed: 1\nseed: 2\n", "twice"),
        ("on: 1", "quotes"),
        ("kind: cake", "'cake'"),
        ("kind: [tokenizer]", "kind"),
        ("kind: tokenizer\noutput: out\ndata: x\nmodel: x\nobjective: x\ntraining: x\n", "data"),
    ],
)
def test_a_file_that_is_no_recipe(refused, tmp_path, content, words):
    (tmp_path / "bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused("train", "bad.yaml")
    assert said.startswith("smalti: bad.yaml") and words in said


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=true",
        "training.steps=.inf",
        "training.steps=nan",
        "training.batch_size=0",
        "training.batch_size=100000000",
        "training.batch_size=1000000000000",
        "training.optimizer.learning_rate=nan",
        "training.optimizer.learning_rate=1e400",
        "training.optimizer.betas=[1.5,0.9]",
        "training.optimizer.betas=[.nan,0.9]",
        "training.precision=no",
        "seed=99999999999999999999999",
        "model.backbone.widths=[]",
        "model.backbone.widths=[1000000000]",
        "model.bottleneck.dim=1000000000000",
        "model.bottleneck.num_codes=1000000000000",
        "model.backbone.residual_blocks=1000000000",
        "model.bottleneck.num_codes=99999999999999999999999",
        "model.bottleneck={kind: fsq, levels: [1000000000, 1000000000, 1000000000]}",
        "data.preprocess.size=1000000",
        "data.workers=100000000",
        "data.source={kind: torchvision, name: Cake}",
        "data.source={kind: huggingface, path: ./nowhere}",
        "objective.weights={}",
        "output=recipe.yaml",
        "output=recipe.yaml/below",
        "output=.",
        "training=[1",
        "training=*a",
        "a..b=3",
    ],
)
def test_a_value_that_no_training_can_use(refused, override):
    keys = override.partition("=")[0].split(".")
    said = refused("train", "recipe.yaml", override)
    assert any(key in said for key in keys) or "override" in said or "recipe.yaml" in said


def test_more_draws_than_memory_holds(refused):
    vae = ("model.bottleneck={kind: gaussian}", "objective.weights={nll: 1, kl: 1}")
    assert "of 1,000,000,000 draws (objective.draws)" in refused(
        "train", "recipe.yaml", *vae, "objective.draws=1000000000"
    )


@pytest.mark.parametrize(
    "option",
    [
        "--num-images=3000000000",
        "--num-images=0",
        "--seed=99999999999999999999999",
        "--seed=-1",
        "--temperature=nan",
        "--guidance-scale=inf",
        "--top-p=nan",
        "--top-k=0",
        "--batch-size=99999999999999999999999",
    ],
)
def test_a_number_of_the_command_line(refused, option):
    assert option.partition("=")[0] in refused("sample", "anything", "-o", "out", option)


@pytest.mark.parametrize("target", ["recipe.yaml", "recipe.yaml/below", "photos", "."])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_an_output_that_cannot_be_claimed(refused, tmp_path, tiny_tokens, tiny_tokenizer, target, overwrite):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("a cat")
    for command in (["decode", tiny_tokens], ["reconstruct", tiny_tokenizer, "--data", tmp_path / "recipe.yaml"]):
        assert target in refused(*command, "-o", target, *overwrite)
    assert (tmp_path / "photos" / "cat.png").read_text() == "a cat"
    assert (tmp_path / "recipe.yaml").read_text() == RECIPE


@pytest.mark.parametrize("name", ["folder", "a.jpg", "a", "recipe.yaml/a.png"])
def test_a_figure_that_cannot_be_written(refused, tmp_path, tiny_tokens, name):
    (tmp_path / "folder").mkdir()
    assert name.split("/")[0] in refused("inspect", tiny_tokens, "-o", name)


def test_labels_that_are_lists(refused, tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"image": [b"x"] * 8, "label": [[1]] * 8}).to_parquet(tmp_path / "table.parquet")
    source = "{kind: huggingface, path: parquet, data_files: table.parquet, label: label}"
    assert "source.label" in refused("train", "recipe.yaml", f"data.source={source}")


def link_to_itself(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize("occupy", [Path.mkdir, link_to_itself])
def test_what_stands_in_the_place_of_a_recipe_is_named(refused, tmp_path, tiny_tokenizer, occupy):
    shutil.copytree(tiny_tokenizer, tmp_path / "done" / "tokenizer")
    shutil.copy(tmp_path / "recipe.yaml", tmp_path / "done")
    occupy(tmp_path / "done" / "tokenizer" / "recipe.yaml")
    assert "done/tokenizer/recipe.yaml" in refused("encode", "done/tokenizer", "-o", "out")


@pytest.mark.parametrize("occupy", [Path.mkdir, link_to_itself])
def test_what_stands_in_the_place_of_the_best_models_config_is_named(refused, tmp_path, tiny_tokenizer, occupy):
    shutil.copytree(tiny_tokenizer, tmp_path / "run" / "last")
    (tmp_path / "run" / "best").mkdir()
    occupy(tmp_path / "run" / "best" / "config.json")
    assert "run/best/config.json" in refused("encode", "run", "-o", "out", "--data", "recipe.yaml")


@pytest.mark.parametrize(
    ("ended", "failure"),
    [
        ({"exit_code": 0}, "exit code 0"),
        ({"exit_code": 1}, "exit code 1"),
        ({"exit_code": None}, "stopped"),
        ({"errors": " \n"}, "no message"),
        ({"errors": "Traceback (most recent call last)"}, "traceback"),
        ({"errors": "UserWarning: old"}, "warning"),
        ({"seconds": SECONDS + 1}, " s"),
        ({"peak": BYTES + 1}, "GiB"),
    ],
)
def test_the_benchmark_tells_a_bad_answer_from_a_good_one(ended, failure):
    answer = {"exit_code": 2, "seconds": 1.0, "peak": 2**20, "errors": "smalti: a.yaml: no such recipe"}
    case = Case("recipe", "a missing one", ["train", "a.yaml"])
    assert not Outcome(case, **answer).failures
    (found,) = Outcome(case, **(answer | ended)).failures
    assert failure in found


def test_every_case_of_the_benchmark_has_a_name_of_its_own():
    names = [str(case) for case in all_cases()]
    assert len(names) == len(set(names)) > 271
