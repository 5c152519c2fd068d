"""A pipeline ends with a report, redoes only what is stale, and a refused rerun changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.base.errors import UserError
from pipelines.base.signals import Interrupted
from pipelines.cli import app
from pipelines.evaluate.report import rows
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.recipes.pipeline import load_pipeline
from pipelines.recipes.stages import load_recipe
from pipelines.run import run
from pipelines.sample import SampleRequest, sample
from pipelines.train import train_recipe


@pytest.fixture(scope="module")
def finished(recipe_file):
    return run(load_pipeline(recipe_file)), recipe_file.parent / "out"


def test_the_report_holds_every_figure_and_every_stage(finished):
    report, root = finished
    assert report == json.loads((root / "report.json").read_text())
    assert report["codes"]["size"] == 48 and 0 < report["codes"]["used"] <= 48
    assert report["reconstruction"]["images"] == report["bits_per_token"]["images"] == 10
    assert report["labels"]["checker"] == "shapes checker"
    assert report["labels"]["real_accuracy"] == 1  # the checker reads real scenes without a mistake
    assert {"tokenizer", "encode", "prior", "image pipeline", "sample", "reconstruct", "evaluate"} <= report[
        "seconds"
    ].keys()
    for name in ("overview.png", "reconstructions.png", "samples.png", "codes.png"):
        with Image.open(root / name) as picture:
            assert picture.width > 32
        assert name in (root / "report.md").read_text()


def test_a_report_leaves_out_real_images_where_none_has_a_label(finished):
    report, _ = finished
    without = {**report, "labels": {**report["labels"], "real_accuracy": 0.0, "real_images": 0}}
    assert [line for line in rows(report) if line not in rows(without)] == [
        ("… real images that do, by the same checker", "100.0% of 10")
    ]


def test_the_image_pipeline_of_a_run_samples_with_the_options_of_the_recipe(finished):
    _, root = finished
    assert ImageGenerationPipeline.from_pretrained(root).generation_config.top_p == 0.9


@pytest.mark.parametrize("name", ["out", "out/image_pipeline", "out/tokenizer", "out/tokenizer/best"])
def test_reconstruct_reads_the_data_of_the_pipeline_that_it_is_given(finished, recipe_file, tmp_path, name):
    folder = recipe_file.parent / name
    done = CliRunner().invoke(app, ["reconstruct", str(folder), "-o", str(tmp_path / "r"), "--max-images", "10"])
    assert done.exception is None, done.exception
    figures = json.loads((tmp_path / "r" / "reconstruction.json").read_text())["fidelity"]
    assert figures == finished[0]["reconstruction"]


@pytest.mark.parametrize("data", ["pipeline.yaml", "tokenizer.yaml", "out/recipe.yaml"])
def test_an_image_pipeline_that_stands_alone_reconstructs_the_data_of_a_recipe(finished, recipe_file, tmp_path, data):
    folder = shutil.copytree(finished[1] / "image_pipeline", tmp_path / "alone")
    arguments = ["reconstruct", str(folder), "-o", str(tmp_path / "r"), "--max-images", "10"]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, UserError) and "expected --data" in str(refused.exception)
    done = CliRunner().invoke(app, [*arguments, "--data", str(recipe_file.parent / data)])
    assert done.exception is None, done.exception
    figures = json.loads((tmp_path / "r" / "reconstruction.json").read_text())["fidelity"]
    assert figures == finished[0]["reconstruction"]


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
    assert without_times(again) == without_times(report)
    assert [path.stat().st_mtime_ns for path in kept] == stamps


def stamps(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def without_times(report):
    return {**report, "seconds": None, "recipe": None, "sources": None}


@pytest.fixture
def copied(finished, tmp_path):
    """A finished pipeline of the test's own, in another place than where it was made."""
    return Path(shutil.copytree(finished[1], tmp_path / "elsewhere" / "moved"))


STAGES = {"tokenizer", "tokens", "prior", "image_pipeline", "samples", "chosen", "reconstructions"}


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("sample.seed=5", {"samples"}),
        ("sample.num_images=8", {"samples"}),
        ("sample.num_images=4", {"samples"}),
        ("sample.candidates.num_candidates=2", {"chosen"}),
        ("sample.options.guidance_scale=2.5", {"image_pipeline", "samples"}),
        ("sample.options.top_p=null", {"image_pipeline", "samples"}),
        ("evaluate.max_images=5", {"reconstructions"}),
        ("evaluate.num_pairs=3", {"reconstructions"}),
    ],
)
def test_a_changed_option_redoes_only_what_depends_on_it(recipe_file, copied, override, redone):
    before = stamps(copied)
    report = run(load_pipeline(recipe_file, [f"output={copied}", override]))
    after = stamps(copied)
    changed = {path.relative_to(copied).parts[0] for path in after if before.get(path) != after[path]}
    assert changed & STAGES == redone
    assert report == json.loads((copied / "report.json").read_text())
    again = run(load_pipeline(recipe_file, [f"output={copied}", override]))
    assert again == report and stamps(copied) == after  # and now it is finished


def test_a_larger_number_of_samples_keeps_those_that_are_there(recipe_file, copied):
    kept = sorted((copied / "samples" / "images").iterdir())
    before = [path.stat().st_mtime_ns for path in kept]
    run(load_pipeline(recipe_file, [f"output={copied}", "sample.num_images=8"]))
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert len(list((copied / "samples" / "images").iterdir())) == 8


def test_a_smaller_number_of_samples_keeps_the_first(recipe_file, copied):
    first = sorted((copied / "samples" / "images").iterdir())[:4]
    before = {path: path.stat().st_mtime_ns for path in first}
    report = run(load_pipeline(recipe_file, [f"output={copied}", "sample.num_images=4"]))
    assert {path: path.stat().st_mtime_ns for path in (copied / "samples" / "images").iterdir()} == before
    assert report["labels"]["images"] == 4


@pytest.mark.parametrize(
    "override",
    [
        "tokenizer.data.workers=1",
        "tokenizer.data.cache_bytes=0",
        "tokenizer.training.log_every=1",
        "prior.training.keep_states=1",
        "encode.batch_size=8",
        "sample.batch_size=3",
    ],
)
def test_an_option_that_changes_no_result_leaves_a_pipeline_finished(recipe_file, copied, override):
    before = stamps(copied)
    run(load_pipeline(recipe_file, [f"output={copied}", override]))
    assert stamps(copied) == before


def test_figures_do_not_depend_on_what_was_there_before(recipe_file, copied, finished):
    report, _ = finished
    for options in (["sample.seed=5", "evaluate.max_images=5"], []):
        found = run(load_pipeline(recipe_file, [f"output={copied}", *options]))
    assert without_times(found) == without_times(report)


def test_a_report_knows_when_its_samples_have_been_replaced(recipe_file, copied, finished):
    images = {path.name: path.read_bytes() for path in (copied / "samples" / "images").iterdir()}
    other = SampleRequest(num_images=6, seed=9)
    sample(copied / "image_pipeline", copied / "samples", other, replace_others=True)
    assert {path.name: path.read_bytes() for path in (copied / "samples" / "images").iterdir()} != images
    assert without_times(run(load_pipeline(recipe_file, [f"output={copied}"]))) == without_times(finished[0])
    assert {path.name: path.read_bytes() for path in (copied / "samples" / "images").iterdir()} == images


def test_a_moved_folder_is_finished_by_whatever_path_it_is_addressed(recipe_file, copied, monkeypatch):
    before = stamps(copied)
    monkeypatch.chdir(copied.parent)
    for output in (copied, "moved", "../elsewhere/moved"):
        run(load_pipeline(recipe_file, [f"output={output}"]))
    assert stamps(copied) == before


@pytest.mark.parametrize("override", ["tokenizer.training.steps=7", "prior.seed=3", "prior.transformer.dim=32"])
def test_a_refused_rerun_changes_nothing(recipe_file, copied, override):
    before = {path: path.read_bytes() for path in stamps(copied) if path.name != ".smalti.json"}
    with pytest.raises(UserError, match="another recipe"):
        run(load_pipeline(recipe_file, [f"output={copied}", override, "sample.seed=5", "evaluate.max_images=5"]))
    assert {path: path.read_bytes() for path in stamps(copied) if path.name != ".smalti.json"} == before


@pytest.mark.parametrize("name", ["report.json", "seconds.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"recipe": 3, "tokenizer": "long"}'])
def test_a_damaged_note_of_the_pipeline_is_written_again(recipe_file, copied, finished, name, content):
    (copied / name).write_text(content)
    (copied / "codes.png").unlink()
    assert without_times(run(load_pipeline(recipe_file, [f"output={copied}"]))) == without_times(finished[0])
    assert isinstance(json.loads((copied / name).read_text()), dict)


@pytest.mark.slow
def test_starting_over_that_was_interrupted_is_continued_without_overwrite(recipe_file, copied, monkeypatch):
    recipe = load_pipeline(recipe_file, [f"output={copied}", "tokenizer.seed=5"])
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.run.encode", interrupt)
        with pytest.raises(Interrupted):
            run(recipe, overwrite=True)
    left = {path.relative_to(copied).as_posix() for path in stamps(copied)}
    assert not left & {"report.json", "report.md", "overview.png", "samples/samples.json"}
    report = run(recipe)
    assert report == json.loads((copied / "report.json").read_text())


def interrupt(*_, **__):
    raise Interrupted(signal.SIGINT)


def test_a_foreign_part_is_refused_before_anything_is_deleted(recipe_file, copied):
    shutil.rmtree(copied / "samples")
    (copied / "samples").mkdir()
    (copied / "samples" / "thesis.tex").write_text("mine")
    before = {path: path.read_bytes() for path in stamps(copied)}
    with pytest.raises(UserError, match="was not written by `smalti sample`"):
        run(load_pipeline(recipe_file, [f"output={copied}"]), overwrite=True)
    assert {path: path.read_bytes() for path in stamps(copied)} == before


def test_a_foreign_folder_is_refused(recipe_file, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for overwrite in (False, True, True):
        with pytest.raises(UserError, match="was not written by `smalti run`"):
            run(load_pipeline(recipe_file, [f"output={tmp_path}"]), overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_training_into_the_root_of_a_pipeline_is_refused(recipe_file, copied):
    recipe = load_recipe(recipe_file.parent / "tokenizer.yaml", [f"output={copied}"])
    before = {path: path.read_bytes() for path in stamps(copied)}
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds a pipeline"):
            train_recipe(recipe, overwrite)
    assert {path: path.read_bytes() for path in stamps(copied)} == before


def test_a_prior_on_labels_that_the_data_lacks_is_refused_before_training(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.data.shapes.CLASSES", [])
    with pytest.raises(UserError, match="the data has no labels"):
        run(load_pipeline(recipe_file, [f"output={tmp_path / 'out'}"]))
    assert not (tmp_path / "out").exists()


GREY = "tokenizer.data.preprocess.mode=L"  # whose labels a classifier checks


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["prior.training.precision=fp16"], r"prior\.training\.precision: found 'fp16'"),
        (["prior.training.gradient_accumulation_steps=3"], r"prior\.training\.batch_size: found 16"),
        (["prior.transformer.dim=1000000"], r"prior\.model: training it would take"),
        (
            ["tokenizer.model.bottleneck={kind: gaussian, dim: 4}", "tokenizer.objective.weights={nll: 1, kl: 1}"],
            "codes",
        ),
        (["tokenizer.objective.weights={nll: 1, entropy: 1}"], r"objective\.weights"),
        (
            [GREY, "evaluate.classifier.training={steps: 1, precision: fp16}"],
            r"evaluate\.classifier\.training\.precision",
        ),
        (
            [GREY, "evaluate.classifier.training={steps: 1, batch_size: 1000000000}"],
            r"evaluate\.classifier\.training\.batch_size",
        ),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_later_stage_cannot_use_is_refused_before_anything_is_trained_or_deleted(
    recipe_file, copied, overrides, words, overwrite
):
    output = copied if overwrite else copied.parent / "new"
    before = stamps(copied.parent)
    with pytest.raises(UserError, match=words):
        run(load_pipeline(recipe_file, [f"output={output}", *overrides]), overwrite)
    assert stamps(copied.parent) == before and output.exists() == overwrite


@pytest.mark.slow
def test_grey_shapes_are_checked_by_a_classifier(recipe_file, tmp_path):
    classifier = "{training: {steps: 4, batch_size: 16, validate_every: 4, validation_images: 8}}"
    overrides = ["tokenizer.data.preprocess.mode=L", f"evaluate.classifier={classifier}", f"output={tmp_path / 'out'}"]
    report = run(load_pipeline(recipe_file, overrides))
    assert report["labels"]["checker"] == "classifier" and report["labels"]["real_images"] == 10
    tokenizer = tmp_path / "out" / "tokenizer" / "done.json"
    trained = (tmp_path / "out" / "classifier" / "done.json").read_text()
    before = tokenizer.stat().st_mtime_ns
    overrides[1] = overrides[1].replace("steps: 4", "steps: 6")
    run(load_pipeline(recipe_file, overrides))  # another classifier takes the place of the first
    again = (tmp_path / "out" / "classifier" / "done.json").read_text()
    assert again != trained and json.loads(again)["steps"] == 6
    assert tokenizer.stat().st_mtime_ns == before


@pytest.mark.slow
def test_two_processes_report_what_one_reports(recipe_file, finished, tmp_path):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "pipelines", "run", str(recipe_file), f"output={tmp_path / 'out'}"),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for block, name in (("reconstruction", "images"), ("bits_per_token", "images"), ("labels", "images")):
        assert report[block][name] == finished[0][block][name]
    assert report["labels"]["real_accuracy"] == 1
    assert report["reconstruction"]["psnr"] == pytest.approx(finished[0]["reconstruction"]["psnr"], rel=0.05)
