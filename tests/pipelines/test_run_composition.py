"""The report of the whole chain, and that of `smalti evaluate`, say how many samples show their caption."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.data.composition.scenes import parse_caption
from pipelines.data.composition.source import is_held_out
from pipelines.evaluate.report import rows
from pipelines.evaluate.samples import read_samples
from pipelines.evaluate_model import EvaluationRequest, evaluate_model
from pipelines.recipes.pipeline import load_pipeline
from pipelines.run import run
from tests.pipelines.test_run_captions import PRIOR
from tests.pipelines.tiny_recipes import RECIPES

SOURCE = {"kind": "composition", "train": 64, "validation": 16, "test": 24, "relation_fraction": 0.3}
DATA = {"source": SOURCE, "preprocess": {"size": 32, "mode": "RGB"}}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("composition")
    content = {
        "kind": "pipeline",
        "output": str(folder / "out"),
        "tokenizer": {**RECIPES["tokenizer.yaml"], "data": DATA},
        "prior": PRIOR,
        "sample": {"num_images": 10, "candidates": {"num_candidates": 3}},
        "evaluate": {"max_images": 10, "num_pairs": 4},
    }
    (folder / "pipeline.yaml").write_text(json.dumps(content))
    return folder / "pipeline.yaml"


@pytest.fixture(scope="module")
def finished(recipe_file):
    return run(load_pipeline(recipe_file)), recipe_file.parent / "out"


@pytest.mark.slow
def test_samples_are_of_combinations_that_training_never_shows(finished, recipe_file):
    config = load_pipeline(recipe_file).tokenizer.data.source
    scenes = [parse_caption(caption) for caption in read_samples(finished[1] / "samples").prompts or ()]
    assert len(scenes) == 10 and all(scene and is_held_out(scene, config) for scene in scenes)


@pytest.mark.slow
def test_the_report_says_how_many_samples_show_their_caption(finished):
    report, root = finished
    single, pair = report["captions"]["groups"]
    assert (single["scene"], pair["scene"]) == ("object", "relation") and single["images"] + pair["images"] == 10
    assert 0 <= single["samples"]["colour"]["mean"] <= 1 and "relation" in pair["reconstructions"]
    said = [what for what, _ in rows(report)]
    assert "samples that show their caption: one object, never trained on" in said
    text = (root / "report.md").read_text()
    assert "captions.png" in text and "| other colour |" in text
    with Image.open(root / "captions.png") as picture:
        assert picture.width > 300


@pytest.mark.slow
def test_the_best_of_several_candidates_stand_beside_the_samples(finished):
    report, root = finished
    assert read_samples(root / "chosen").prompts == read_samples(root / "samples").prompts
    best, first = ([entry["logprob"] for entry in listed(root / name)] for name in ("chosen", "samples"))
    assert all(one > other - 0.01 for one, other in zip(best, first, strict=True))  # one candidate is the sample
    assert max(one - other for one, other in zip(best, first, strict=True)) > 0.1
    assert report["chosen"]["num_candidates"] == 3 and report["chosen"]["labels"] is None
    assert sum(group["images"] for group in report["chosen"]["captions"]["groups"]) == 10
    said = [what for what, _ in rows(report)]
    assert any(what.startswith("best of 3: samples that show their caption") for what in said)
    assert said.count("… reconstructions of the real pictures") == 2  # of each kind of scene, once
    text = (root / "report.md").read_text()
    for name in ("chosen_samples.png", "chosen_captions.png", "## The best of 3 candidates"):
        assert name in text


@pytest.mark.slow
def test_without_candidates_nothing_of_them_is_reported_any_more(finished, recipe_file, tmp_path):
    root = Path(shutil.copytree(finished[1], tmp_path / "copy"))
    plain = load_pipeline(recipe_file, [f"output={root}", "sample.candidates=null"])
    report = run(plain)
    assert report["chosen"] is None and "candidates" not in report["seconds"]
    assert not list(root.glob("chosen_*")) and "chosen" not in (root / "report.md").read_text()
    shutil.rmtree(root / "chosen")
    stamp = (root / "report.json").stat().st_mtime_ns
    assert run(plain) == json.loads(json.dumps(report)) and (root / "report.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_several_candidates_of_a_caption_may_be_kept(finished, recipe_file, tmp_path):
    root = Path(shutil.copytree(finished[1], tmp_path / "copy"))
    run(load_pipeline(recipe_file, [f"output={root}", "sample.candidates.keep=2"]))
    prompts = read_samples(root / "chosen").prompts
    assert len(prompts) == 10 and all(prompts.count(prompt) == 2 for prompt in prompts)


def listed(folder: Path) -> list[dict]:
    return json.loads((folder / "samples.json").read_text())["images"]


@pytest.mark.slow
def test_a_finished_chain_is_left_alone_unless_its_figure_is_gone(finished, recipe_file, capfd):
    report, root = finished
    assert run(load_pipeline(recipe_file)) == json.loads(json.dumps(report))
    assert "finished; nothing to do" in " ".join(capfd.readouterr().err.split())
    (root / "captions.png").unlink()
    run(load_pipeline(recipe_file))
    assert (root / "captions.png").is_file()


@pytest.mark.slow
def test_evaluate_finds_the_same(finished, recipe_file, tmp_path):
    report, root = finished
    data = load_pipeline(recipe_file).tokenizer.data
    request = EvaluationRequest(samples=root / "samples", max_images=4, draws=2)
    found = evaluate_model(root / "image_pipeline", data, tmp_path / "out", request)
    assert found["captions"] == json.loads(json.dumps(report["captions"])) and found["labels"] is None
    assert (tmp_path / "out" / "captions.png").is_file()
    assert "captions.png" in (tmp_path / "out" / "report.md").read_text()
    assert evaluate_model(root / "image_pipeline", data, tmp_path / "out", request) == found
    assert "captions" not in evaluate_model(
        root / "image_pipeline", data, tmp_path / "bare", EvaluationRequest(max_images=4)
    )
    with pytest.raises(UserError, match="--classifier: found somewhere, expected none: captions are read"):
        changed = request.model_copy(update={"classifier": Path("somewhere")})
        evaluate_model(root / "image_pipeline", data, tmp_path / "other", changed)
