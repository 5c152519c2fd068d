"""Laws of the chain: it ends with a report, resumes where it stopped, and a finished one is left alone."""

import json

import pytest
import yaml
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.recipes.pipeline import load_pipeline
from pipelines.run import run

TRAINING = {"steps": 6, "batch_size": 16, "validate_every": 3, "save_every": 3, "validation_images": 8}
RECIPES = {
    "tokenizer.yaml": {
        "kind": "tokenizer",
        "output": "elsewhere",
        "data": {
            "source": {"kind": "shapes", "train": 64, "validation": 16, "test": 24},
            "preprocess": {"size": 32, "mode": "RGB"},
        },
        "model": {
            "backbone": {"kind": "conv", "widths": [8, 16], "residual_blocks": 1, "residual_width": 8},
            "bottleneck": {"kind": "vq", "num_codes": 48, "dim": 8},
            "likelihood": {"kind": "normal"},
        },
        "objective": {"weights": {"nll": 1, "commitment": 0.25}},
        "training": TRAINING,
    },
    "prior.yaml": {
        "kind": "prior",
        "output": "elsewhere",
        "tokens": "elsewhere",
        "condition": "label",
        "transformer": {"dim": 16, "depth": 1, "heads": 1, "head_dim": 16},
        "training": TRAINING,
    },
}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    pipeline = {
        "kind": "pipeline",
        "output": str(folder / "out"),
        "tokenizer": "tokenizer.yaml",
        "prior": "prior.yaml",
        "sample": {"num_images": 6, "options": {"top_p": 0.9}},
        "evaluate": {"max_images": 10, "num_pairs": 4},
    }
    for name, content in {**RECIPES, "pipeline.yaml": pipeline}.items():
        (folder / name).write_text(yaml.safe_dump(content))
    return folder / "pipeline.yaml"


@pytest.fixture(scope="module")
def finished(recipe_file):
    return run(load_pipeline(recipe_file)), recipe_file.parent / "out"


def test_the_report_holds_every_figure_and_every_stage(finished):
    report, root = finished
    assert report == json.loads((root / "report.json").read_text())
    assert report["codes"]["size"] == 48 and 0 < report["codes"]["used"] <= 48
    assert report["reconstruction"]["images"] == report["bits_per_token"]["images"] == 10
    assert report["labels"]["judge"] == "shapes checker"
    assert report["labels"]["real_accuracy"] == 1  # the checker reads real scenes without a mistake
    assert {"tokenizer", "encode", "prior", "image pipeline", "sample", "reconstruct", "evaluate"} <= report[
        "seconds"
    ].keys()
    for name in ("reconstructions.png", "samples.png", "codes.png"):
        with Image.open(root / name) as picture:
            assert picture.width > 32
        assert name in (root / "report.md").read_text()


def test_the_image_pipeline_of_a_run_samples_with_the_options_of_the_recipe(finished):
    _, root = finished
    assert ImageGenerationPipeline.from_pretrained(root).generation_config.top_p == 0.9


def test_a_finished_pipeline_is_left_alone(finished, recipe_file, capfd):
    report, root = finished
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert run(load_pipeline(recipe_file)) == report
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert "nothing to do" in " ".join(capfd.readouterr().err.split())


def test_what_is_missing_is_made_again_and_nothing_else(finished, recipe_file):
    report, root = finished
    kept = [
        root / "prior" / "done.json",
        root / "tokens" / "manifest.json",
        root / "image_pipeline" / "model_index.json",
    ]
    stamps = [path.stat().st_mtime_ns for path in kept]
    (root / "report.json").unlink()
    (root / "samples" / "samples.json").unlink()
    again = run(load_pipeline(recipe_file))
    assert {**again, "seconds": None} == {**report, "seconds": None}
    assert [path.stat().st_mtime_ns for path in kept] == stamps


def test_overrides_reach_into_the_stages(recipe_file):
    recipe = load_pipeline(recipe_file, ["tokenizer.training.steps=9", "output=runs/x"])
    assert recipe.tokenizer.training.steps == 9
    assert [str(p) for p in (recipe.tokenizer.output, recipe.prior.output, recipe.prior.tokens)] == [
        "runs/x/tokenizer",
        "runs/x/prior",
        "runs/x/tokens",
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sample.m=3", r"pipeline\.yaml: sample\.m: unknown key"),
        ("prior.training.steps=many", r"prior\.training\.steps: found 'many'"),
        ("encode.splits=[train]", r"encode\.splits leaves out test, validation"),
        ("sample.options.top_p=2", r"sample\.options\.top_p: found 2"),
    ],
)
def test_mistakes_are_named(recipe_file, override, words):
    with pytest.raises(UserError, match=words):
        load_pipeline(recipe_file, [override])


def test_another_kind_of_recipe_is_refused(recipe_file):
    with pytest.raises(UserError, match=r"prior\.yaml: kind: found 'prior', expected 'pipeline'"):
        load_pipeline(recipe_file.parent / "prior.yaml")
