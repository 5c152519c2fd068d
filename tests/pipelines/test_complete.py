"""`smalti complete`: a folder of completions that says what was kept, continues, and names mistakes."""

import json

import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_png, to_pil, to_uint8
from pipelines.complete import CompletionRequest, complete
from pipelines.data import open_images
from pipelines.models.completion import complete_images
from pipelines.models.image_masks import rectangle_mask
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.models.image_seeds import image_seeds
from tests.pipelines.conftest import read_example, shapes_data
from tests.pipelines.models import test_prompts
from tests.pipelines.test_cli import smalti

DATA = shapes_data(train=8, test=6)
MIDDLE, LOWER = "30%,30%,70%,70%", "0,50%,100%,100%"
REQUEST = CompletionRequest(images=("2", "0"), redraw=(MIDDLE,), num_completions=3, num_candidates=2, seed=4)


def pixels(folder):
    found = {}
    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as image:
            found[path.name] = image.convert("RGB").tobytes()
    return found


def described(folder):
    return json.loads((folder / "completions.json").read_text())


@pytest.fixture(scope="module")
def finished(image_pipeline, tmp_path_factory):
    return complete(image_pipeline, DATA, tmp_path_factory.mktemp("complete") / "out", REQUEST)


def test_the_folder_holds_and_describes_all_completions(image_pipeline, finished):
    pipe = ImageGenerationPipeline.from_pretrained(image_pipeline)
    rows = open_images(DATA, "test")
    chosen = [read_example(rows, row) for row in (2, 0) * 3]
    images = torch.stack([each.image for each in chosen])
    labels, mask = [each.label for each in chosen], rectangle_mask([MIDDLE], 32)
    out = complete_images(pipe, images, mask, label=labels, num_candidates=2, generator=4, output_type="pt")
    names = [f"{row:05d}_{number}.png" for number in (1, 2, 3) for row in (0, 1)]
    expected = {name: to_pil(to_uint8(image)).tobytes() for name, image in zip(names, out.images, strict=True)}
    assert pixels(finished) == expected
    written = described(finished)
    assert [entry["file"] for entry in written["images"]] == [f"images/{name}" for name in names]
    assert [entry["image"] for entry in written["images"]] == ["2", "0"] * 3
    assert [entry["label"] for entry in written["images"]] == labels
    assert [entry["seed"] for entry in written["images"]] == image_seeds(4, 6)
    assert [entry["logprob"] for entry in written["images"]] == pytest.approx(out.logprobs.sum(1).tolist(), abs=0.01)


def test_it_says_what_was_kept(finished):
    kept = described(finished)["kept"]
    assert kept["cells"] == [["........"] * 2 + ["..####.."] * 4 + ["........"] * 2]
    assert (kept["tokens"], kept["redrawn"], kept["kept_after_a_draw"]) == (64, 16, 64 - 18 - 16)
    assert kept["exact"] is False


def test_the_figure_shows_image_kept_rebuilt_and_completions(finished):
    with Image.open(finished / "completions.png") as figure:
        assert figure.width > 6 * 32 and figure.height > 2 * 32


def test_a_finished_folder_is_left_alone(image_pipeline, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    complete(image_pipeline, DATA, finished, REQUEST)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert "already completed" in capsys.readouterr().err


def test_rerunning_fills_gaps_and_more_completions_are_added(image_pipeline, finished, tmp_path):
    less = REQUEST.model_copy(update={"num_completions": 2, "batch_size": 1})
    complete(image_pipeline, DATA, tmp_path / "out", less)
    first, second, *others = sorted((tmp_path / "out" / "images").iterdir())
    times = {path: path.stat().st_mtime_ns for path in others}
    first.unlink()
    second.write_bytes(second.read_bytes()[:50])  # torn by a crash
    (tmp_path / "out" / "completions.json").unlink()
    complete(image_pipeline, DATA, tmp_path / "out", REQUEST)
    assert pixels(tmp_path / "out") == pixels(finished)
    assert {path: path.stat().st_mtime_ns for path in others} == times
    assert described(tmp_path / "out")["images"] == described(finished)["images"]


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"seed": 5}, "seed"),
        ({"redraw": (LOWER,)}, "mask"),
        ({"images": ("2", "1")}, "images"),
        ({"labels": (0,)}, "conditions"),
        ({"options": {"top_k": 3}}, "options"),
        ({"num_candidates": 1}, "num_candidates"),
        ({"paste_original": True}, "paste_original"),
        ({"margin": 1}, "margin"),
    ],
    ids=str,
)
def test_other_completions_are_refused(image_pipeline, finished, changes, differing):
    with pytest.raises(UserError, match=rf"holds other completions \(of other .*{differing}.*--overwrite"):
        complete(image_pipeline, DATA, finished, REQUEST.model_copy(update=changes))


def test_overwriting_replaces_them_and_nothing_foreign(image_pipeline, tmp_path):
    request = CompletionRequest(images=("0",), redraw=(LOWER,), num_completions=2)
    complete(image_pipeline, DATA, tmp_path / "out", request)
    (tmp_path / "out" / "mine.txt").touch()
    other = request.model_copy(update={"num_completions": 1, "seed": 1})
    complete(image_pipeline, DATA, tmp_path / "out", other, overwrite=True)
    assert len(pixels(tmp_path / "out")) == 1 and (tmp_path / "out" / "mine.txt").exists()
    assert described(tmp_path / "out")["kept"]["exact"] is True


def test_files_and_a_mask_need_no_data(image_pipeline, tmp_path, capsys):
    image = read_example(open_images(DATA, "test"), 3).image
    save_png(tmp_path / "a.png", image)
    save_png(tmp_path / "mask.png", rectangle_mask([MIDDLE], 32)[None].float())
    given = ["--image", tmp_path / "a.png", "--mask", tmp_path / "mask.png", "-n", 1, "--paste-original"]
    code, _, err = smalti_in_process(capsys, "complete", image_pipeline, *given, "-o", tmp_path / "out")
    assert code == 0 and "16 of 64 tokens redrawn, approximately: 30 kept tokens come after the first" in err
    with Image.open(tmp_path / "out" / "images" / "00000_1.png") as picture:
        assert picture.getpixel((0, 0)) == tuple(image[:, 0, 0].tolist())


def smalti_in_process(capsys, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        return smalti(patch, capsys, *arguments)


@pytest.mark.filterwarnings("ignore::pipelines.base.errors.DataWarning")  # captions that are cut off
def test_captions_of_rows_are_their_prompts(tiny_tokens, tmp_path):
    folder = test_prompts.build(tiny_tokens).save_pretrained(tmp_path / "pipeline")
    complete(folder, DATA, tmp_path / "own", CompletionRequest(images=("0", "1"), redraw=(LOWER,), num_completions=1))
    rows = open_images(DATA, "test")
    texts = [read_example(rows, row).text for row in (0, 1)]
    assert [entry["prompt"] for entry in described(tmp_path / "own")["images"]] == texts
    request = CompletionRequest(images=("0", "1"), redraw=(LOWER,), num_completions=1, prompts=("a blue cross",))
    complete(folder, DATA, tmp_path / "given", request)
    assert [entry["prompt"] for entry in described(tmp_path / "given")["images"]] == ["a blue cross"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--redraw, --mask: found neither"),
        (("--redraw", "0,0,40,8"), "--redraw: found '0,0,40,8'"),
        (("--mask", "gone.png"), "--mask: gone.png: no such file"),
        (("--redraw", LOWER, "--image", "6"), "row 6: the split has 6 images"),
        (("--redraw", LOWER, "--image", "gone.png"), "gone.png: no such file"),
        (("--redraw", LOWER, "--label", "0", "--label", "1"), "--label: found 2 for 1 images"),
        (("--redraw", LOWER, "--label", "cat"), "label: found 'cat'"),
        (("--redraw", LOWER, "--prompt", "a cat"), "prompt: found 'a cat', but this prior was trained on labels"),
        (("--redraw", MIDDLE, "--candidates", 2, "--greedy"), "--candidates: found 2, expected 1"),
        (("--redraw", LOWER, "--greedy", "--top-k", 2), "top_k needs do_sample=True"),
        (("--redraw", LOWER, "--candidates", 0), "--candidates"),
        (("--redraw", LOWER, "--split", "all"), "--split: found 'all'"),
    ],
    ids=str,
)
def test_a_mistake_is_named_and_nothing_is_written(image_pipeline, tmp_path, monkeypatch, capsys, arguments, message):
    images = () if "--image" in arguments else ("--image", "0")
    recipe = tmp_path / "data.yaml"
    recipe.write_text(json.dumps({"kind": "tokenizer", "data": DATA.model_dump(mode="json")}))
    given = (image_pipeline, *images, "--data", recipe, "-o", tmp_path / "out", *arguments)
    code, _, err = smalti(monkeypatch, capsys, "complete", *given)
    assert code == 2 and message in " ".join(err.split()) and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_alone_cannot_complete(tiny_vae, tmp_path):
    with pytest.raises(UserError, match="expected the folder of an image pipeline"):
        complete(tiny_vae, DATA, tmp_path / "out", CompletionRequest(images=("0",), redraw=(LOWER,)))
