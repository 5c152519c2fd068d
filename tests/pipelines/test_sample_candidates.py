"""`smalti sample --candidates`: the best of the images that are drawn without it, whatever happens around it."""

import json
import sys

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from pipelines import cli
from pipelines.base.errors import UserError
from pipelines.models.candidate_options import CandidateOptions
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.recipes.data_arguments import candidates_of
from pipelines.sample import SampleRequest, sample

LABELS = (0, 3)
CHOICE = CandidateOptions(num_candidates=3, keep=2)


def request(num_images=None, candidates: CandidateOptions | None = CHOICE, **arguments):
    return SampleRequest(labels=LABELS, num_images=num_images, candidates=candidates, seed=4, **arguments)


def entries(folder):
    return json.loads((folder / "samples.json").read_text())["images"]


def pixels(folder):
    """By seed."""
    return {entry["seed"]: pil_to_tensor(Image.open(folder / entry["file"])) for entry in entries(folder)}


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


@pytest.fixture(scope="module")
def chosen(image_pipeline, tmp_path_factory):
    """Two turns of the labels: of each the 2 best of 3 candidates, twice."""
    return sample(image_pipeline, tmp_path_factory.mktemp("chosen") / "s", request(8))


def test_those_that_are_kept_are_the_best_of_those_that_are_drawn_without(image_pipeline, chosen, tmp_path):
    drawn = sample(image_pipeline, tmp_path / "all", request(12, candidates=None))
    pipe, every, kept = ImageGenerationPipeline.from_pretrained(image_pipeline), pixels(drawn), pixels(chosen)
    assert len(kept) == 8 and all(torch.equal(picture, every[seed]) for seed, picture in kept.items())
    found = entries(chosen)
    for place, label in enumerate(LABELS):
        numbers = [entry for entry in entries(drawn) if entry["index"] % 2 == place]
        for turn in range(2):
            seeds = [entry["seed"] for entry in numbers[3 * turn :][:3]]
            out = pipe(label=[label], num_candidates=3, num_images_per_prompt=2, generator=seeds)
            ours = [entry for entry in found if entry["label"] == label][2 * turn :][:2]
            assert [entry["seed"] for entry in ours] == out.seeds
            assert [entry["score"] for entry in ours] == pytest.approx(out.scores.tolist(), abs=0.01)
            assert ours[0]["score"] >= ours[1]["score"]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_images_depend_neither_on_the_batch_size_nor_on_how_many_there_were_before(
    image_pipeline, chosen, tmp_path, batch_size
):
    sample(image_pipeline, tmp_path / "s", request(3, batch_size=batch_size))  # the second turn of a label is missing
    assert len(entries(tmp_path / "s")) == 3
    sample(image_pipeline, tmp_path / "s", request(8))
    assert [entry["seed"] for entry in entries(tmp_path / "s")] == [entry["seed"] for entry in entries(chosen)]
    assert files(tmp_path / "s").keys() == files(chosen).keys()


def test_a_killed_run_continues(image_pipeline, chosen, tmp_path):
    folder = sample(image_pipeline, tmp_path / "s", request(8))
    before = files(folder)
    (folder / "samples.json").unlink()
    (folder / entries(chosen)[6]["file"]).unlink()
    sample(image_pipeline, folder, request(8))
    assert files(folder) == before


def test_without_a_number_those_that_are_kept_of_each_label_are_written(image_pipeline, tmp_path):
    found = entries(sample(image_pipeline, tmp_path / "s", request()))
    assert [entry["label"] for entry in found] == [0, 3, 0, 3]


def test_other_candidates_are_other_samples(image_pipeline, chosen):
    for other in (None, CandidateOptions(num_candidates=4, keep=2)):
        with pytest.raises(UserError, match="holds other samples"):
            sample(image_pipeline, chosen, request(8, candidates=other))
    content = json.loads((chosen / "samples.json").read_text())["request"]["candidates"]
    assert content == {"num_candidates": 3, "keep": 2, "rerank": "likelihood", "weights": []}


def test_a_latent_prior_has_no_candidates(tiny_vae, tmp_path):
    with pytest.raises(UserError, match="candidates are those of a prior over tokens"):
        sample(tiny_vae, tmp_path / "s", SampleRequest(candidates=CHOICE))


def test_more_candidates_than_there_are_seeds_are_refused(image_pipeline, tmp_path):
    with pytest.raises(UserError, match="num_candidates: found 65,536 for 1,000,000 images"):
        choice = CandidateOptions(num_candidates=2**16)
        sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=10**6, candidates=choice))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, None), "--keep: needs --candidates"),
        ((None, None, "likelihood"), "--rerank: needs --candidates"),
        ((2, 3, None), "num_candidates is 2, expected at least keep, 3"),
        ((2, 1, "beauty"), "rerank: found 'beauty', expected one of 'likelihood', 'likelihood_ratio', 'clip:FOLDER'"),
        ((2, 1, "clip:"), "rerank: found 'clip:', expected one of"),
    ],
)
def test_mistakes_of_the_command_line_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        candidates_of(*arguments)
    assert candidates_of(None, None, None) is None


def test_the_command_line_draws_candidates(image_pipeline, tmp_path, monkeypatch):
    line = ["smalti", "sample", image_pipeline, "-o", tmp_path / "s", "--label", "0", "--label", "3", "--seed", 4]
    monkeypatch.setattr(sys, "argv", [str(part) for part in [*line, "--candidates", 3, "--keep", 2]])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert [entry["label"] for entry in entries(tmp_path / "s")] == [0, 3, 0, 3]
