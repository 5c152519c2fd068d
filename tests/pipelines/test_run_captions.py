"""The whole chain by captions: from images with captions to images of prompts, and `smalti sample` with prompts."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.base.errors import UserError
from pipelines.cli import app
from pipelines.evaluate.report import rows
from pipelines.evaluate.samples import read_samples
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.recipes.data_arguments import prompts_of
from pipelines.recipes.pipeline import load_pipeline
from pipelines.run import run
from pipelines.sample import SampleRequest, sample
from pipelines.tokens.captions import distinct_captions
from pipelines.tokens.dataset import TokenDataset
from tests.pipelines.tiny_recipes import RECIPES

PRIOR = {
    **RECIPES["prior.yaml"],
    "condition": "caption",
    "caption": {"vocab_size": 300, "max_length": 48},
}


def write_recipe(folder: Path, **keys) -> Path:
    content = {
        "kind": "pipeline",
        "output": str(folder / "out"),
        "tokenizer": RECIPES["tokenizer.yaml"],
        "prior": PRIOR,
        "sample": {"num_images": 6, "options": {"guidance_scale": 1.5}},
        "evaluate": {"max_images": 10, "num_pairs": 4},
    }
    (folder / "pipeline.yaml").write_text(json.dumps(content | keys))  # YAML without aliases
    return folder / "pipeline.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe = load_pipeline(write_recipe(tmp_path_factory.mktemp("captions")))
    return run(recipe), recipe.output


def invoke(*arguments) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None, done.exception
    return done.output


@pytest.mark.slow
def test_samples_are_drawn_for_held_out_captions_and_know_them(finished):
    _, root = finished
    expected = distinct_captions(TokenDataset.open(root / "tokens").split("test"), 6)
    found = read_samples(root / "samples")
    assert found.prompts == expected and found.labels == [-1] * 6
    written = json.loads((root / "samples" / "samples.json").read_text())
    assert written["request"]["prompts"] == expected and written["images"][2]["prompt"] == expected[2]
    assert set(written["request"]["weights"]) == {"tokenizer", "prior", "captions"}
    pipe = ImageGenerationPipeline.from_pretrained(root)
    seeds = [entry["seed"] for entry in written["images"]]
    out = pipe(expected, generator=seeds, output_type="pt")
    assert found.logprobs == pytest.approx(out.logprobs.sum(1).tolist(), abs=1e-2)


@pytest.mark.slow
def test_the_report_says_what_the_captions_tell(finished):
    report, root = finished
    bits = report["bits_per_token"]
    assert bits["without_caption"] > 0 and report["labels"] is None
    assert ("… without the captions", f"{bits['without_caption']:.3f}") in rows(report)
    assert "… without the captions" in (root / "report.md").read_text()
    with Image.open(root / "overview.png") as picture:
        assert picture.width > 100


@pytest.mark.slow
def test_the_report_says_which_prompts_training_has_never_shown(finished):
    report, root = finished
    path = root.parent / "pipeline.yaml"
    known = distinct_captions(TokenDataset.open(root / "tokens").split("train"), 1)[0]
    prompts = json.dumps([f" {known.upper()}", "a yellow submarine", "猫"], ensure_ascii=False)
    found = run(load_pipeline(path, [f"sample.prompts={prompts}"]))
    assert found["prompts"] == {"distinct": 3, "unseen": 2}
    assert ("prompts that are the caption of no training image", "2 of 3") in rows(found)
    assert "(prompts.png)" in (root / "report.md").read_text() and (root / "prompts.png").is_file()
    assert run(load_pipeline(path))["prompts"] == report["prompts"]


@pytest.mark.slow
def test_a_finished_chain_is_left_alone_and_another_prompt_redoes_the_samples_only(finished, capfd):
    _, root = finished
    trained = (root / "prior" / "done.json").stat().st_mtime_ns
    path = root.parent / "pipeline.yaml"
    run(load_pipeline(path))
    assert "finished; nothing to do" in " ".join(capfd.readouterr().err.split())
    run(load_pipeline(path, ["sample.prompts=[a red circle, a blue cross]"]))
    assert read_samples(root / "samples").prompts == ["a red circle", "a blue cross"] * 3
    assert (root / "prior" / "done.json").stat().st_mtime_ns == trained
    run(load_pipeline(path))


@pytest.mark.slow
def test_captions_of_an_image_pipeline_that_are_gone_are_written_again(finished):
    _, root = finished
    path = root / "image_pipeline" / "prior" / "captions.json"
    content = path.read_bytes()
    path.unlink()
    (root / "report.json").unlink()
    run(load_pipeline(root.parent / "pipeline.yaml"))
    assert path.read_bytes() == content


@pytest.mark.slow
def test_prompts_come_from_the_command_line_and_from_a_file(finished, tmp_path):
    _, root = finished
    (tmp_path / "prompts.txt").write_text("ein großer Kreis\n\n  a blue cross \n", encoding="utf-8")
    arguments = ("--prompt", "a red circle", "--prompt", "x/y: 猫", "--prompts", tmp_path / "prompts.txt", "-n", 5)
    invoke("sample", root, "-o", tmp_path / "s", *arguments)
    found = read_samples(tmp_path / "s")
    assert found.prompts == ["a red circle", "x/y: 猫", "ein großer Kreis", "a blue cross", "a red circle"]
    names = [path.name for path in found.files]
    assert names[0] == "00000_a-red-circle.png" and names[1] == "00001_x-y.png"
    before = {path: path.stat().st_mtime_ns for path in found.files}
    invoke("sample", root, "-o", tmp_path / "s", *arguments)
    assert {path: path.stat().st_mtime_ns for path in found.files} == before


@pytest.mark.slow
def test_every_prompt_of_a_file_is_drawn(finished, tmp_path):
    _, root = finished
    (tmp_path / "prompts.txt").write_text("\n".join(f"{i} circles" for i in range(66)))
    invoke("sample", root, "-o", tmp_path / "s", "--prompts", tmp_path / "prompts.txt")
    assert len(read_samples(tmp_path / "s").files) == 66


@pytest.mark.slow
def test_other_prompts_are_refused_and_nothing_is_deleted(finished, tmp_path):
    _, root = finished
    sample(root, tmp_path / "s", SampleRequest(prompts=("a red circle",), num_images=1))
    with pytest.raises(UserError, match=r'prompts: there \["a red circle"\], asked \["a blue cross"\]'):
        sample(root, tmp_path / "s", SampleRequest(prompts=("a blue cross",), num_images=1))
    with pytest.raises(UserError, match="holds other samples"):
        sample(root, tmp_path / "s", SampleRequest(num_images=1))
    assert len(read_samples(tmp_path / "s").files) == 1


@pytest.mark.slow
def test_without_a_prompt_images_are_drawn_without_a_caption(finished, tmp_path):
    _, root = finished
    sample(root, tmp_path / "s", SampleRequest(num_images=2))
    found = read_samples(tmp_path / "s")
    assert found.prompts is None and [path.name for path in found.files] == ["00000.png", "00001.png"]


@pytest.mark.slow
def test_inspect_tells_of_the_captions(finished):
    _, root = finished
    assert "of at most 48 tokens, 300 different ones" in " ".join(invoke("inspect", root / "prior").split())


@pytest.mark.slow
def test_a_smaller_prior_of_another_kind_leaves_no_captions(finished, tmp_path):
    _, root = finished
    shutil.copytree(root, tmp_path / "out")
    (tmp_path / "out" / "prior" / "notes.txt").write_text("mine")
    label = {**RECIPES["prior.yaml"]}
    recipe = load_pipeline(write_recipe(tmp_path, prior=label))
    run(recipe, overwrite=True)
    assert not list((tmp_path / "out").rglob("captions.json"))
    assert (tmp_path / "out" / "prior" / "notes.txt").read_text() == "mine"


# Mistakes, told before anything is trained


def test_a_prompt_for_a_prior_by_label_is_refused(image_pipeline, tmp_path):
    with pytest.raises(UserError, match="prompt: found 'a', but this prior was trained on labels"):
        sample(image_pipeline, tmp_path / "s", SampleRequest(prompts=("a",)))
    assert not (tmp_path / "s").exists()


def test_a_prompt_for_a_continuous_tokenizer_is_refused(tiny_vae, tmp_path):
    with pytest.raises(UserError, match="prompt: found 'a', but this tokenizer is unconditional"):
        sample(tiny_vae, tmp_path / "s", SampleRequest(prompts=("a",)))


@pytest.mark.parametrize(("content", "words"), [("\n \n", "found no prompt"), ("\xff", "not UTF-8"), (None, "cannot")])
def test_a_file_without_prompts_is_named(image_pipeline, tmp_path, content, words):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content.encode("latin-1"))
    done = CliRunner().invoke(app, ["sample", str(image_pipeline), "-o", str(tmp_path / "s"), "--prompts", str(file)])
    assert isinstance(done.exception, UserError) and words in str(done.exception) and str(file) in str(done.exception)


def test_only_the_ends_of_lines_part_the_prompts_of_a_file(tmp_path):
    content = "\ufeffa red circle\r\n\r\n \t\na small\u2028blue\x0bcross \r"
    (tmp_path / "prompts.txt").write_bytes(content.encode())
    expected = ("", "a red circle", "a small\u2028blue\x0bcross")
    assert prompts_of([""], tmp_path / "prompts.txt") == expected
    assert prompts_of(None, None) is None


def test_data_without_captions_is_refused_before_anything_is_trained(tmp_path, tiny_vae):
    from tests.pipelines.test_partly_labelled import write_images

    files = {split: write_images(tmp_path / f"{split}.parquet", [0] * 8) for split in ("train", "validation", "test")}
    source = {"kind": "huggingface", "path": "parquet", "data_files": files}
    tokenizer = {**RECIPES["tokenizer.yaml"], "data": {"source": source, "preprocess": {"size": 32, "mode": "RGB"}}}
    recipe = load_pipeline(write_recipe(tmp_path, tokenizer=tokenizer))
    with pytest.raises(UserError, match=r"prior\.condition: found 'caption', but the data has no captions"):
        run(recipe)
    assert not recipe.output.exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"prior": RECIPES["prior.yaml"], "sample": {"prompts": ["a"]}},
            "sample.prompts needs prior.condition: caption",
        ),
        ({"prior": {**PRIOR, "condition_dropout": 0}}, "guidance_scale is 1.5, but prior.condition_dropout is 0"),
        ({"sample": {"prompts": []}}, "sample.prompts: found"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, keys, words):
    with pytest.raises(UserError, match=words):
        load_pipeline(write_recipe(tmp_path, **keys))
