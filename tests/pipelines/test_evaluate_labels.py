"""`smalti evaluate --samples`: whether samples show their labels, as pixels or a classifier tell."""

import itertools
import json
import shutil
import sys

import pytest
import torch

from pipelines import ImageGenerationPipeline, cli
from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_images
from pipelines.data import open_images
from pipelines.data.binarize import Binarize
from pipelines.data.shapes import CLASSES
from pipelines.evaluate.classifier import load_classifier
from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.evaluate.samples import read_samples
from pipelines.evaluate_model import EvaluationRequest, evaluate_model
from pipelines.recipes.pipeline import load_pipeline
from pipelines.recipes.pipeline_checks import classifier_recipe
from pipelines.recipes.stages import load_recipe
from pipelines.sample import SampleRequest, sample
from pipelines.train import train_recipe
from tests.pipelines.conftest import grey_data, shapes_data, write_vae

CONDITION = {"kind": "film", "num_classes": len(CLASSES), "dim": 4}
COLOUR = shapes_data(train=8, test=20)
GREY = grey_data(None, train=40, validation=8, test=20)
TRAINING = {"steps": 2, "batch_size": 8, "validate_every": 2, "validation_images": 8}


def request_of(samples, classifier=None, **options):
    return EvaluationRequest(draws=2, max_images=12, samples=samples, classifier=classifier, **options)


@pytest.fixture(scope="module")
def colour_model(tmp_path_factory):
    model = {"image_size": 32, "channels": 3, "likelihood": {"kind": "normal"}, "condition": CONDITION}
    return write_vae(tmp_path_factory.mktemp("colour"), classes=CLASSES, **model)


@pytest.fixture(scope="module")
def colour_samples(colour_model, tmp_path_factory):
    return sample(colour_model, tmp_path_factory.mktemp("colour_samples"), SampleRequest(num_images=48))


@pytest.fixture(scope="module")
def grey_model(tmp_path_factory):
    return write_vae(tmp_path_factory.mktemp("grey"), classes=CLASSES, condition=CONDITION)


@pytest.fixture(scope="module")
def grey_samples(grey_model, tmp_path_factory):
    return sample(grey_model, tmp_path_factory.mktemp("grey_samples"), SampleRequest(num_images=30))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Hardly trained, which is enough to tell something."""
    output = tmp_path_factory.mktemp("classifier") / "run"
    content = {"output": output, "data": GREY.model_dump(), "width": 2, "training": TRAINING}
    return train_recipe(ClassifierRecipe.model_validate(content)).path


def changed(folder, copy, name, **keys):
    """A copy of a folder, with other values of some keys of a JSON file in it."""
    path = shutil.copytree(folder, copy) / name
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return copy


def true_images(samples):
    """Put a real image of its label in the place of every sample."""
    images = open_images(shapes_data(train=8, test=400, two_object_fraction=0), "test").read_batch(range(400))
    rows = {label: row for row, label in enumerate(images.label.tolist())}
    found = read_samples(samples)
    save_images(found.files, images.image[[rows[label] for label in found.labels]])
    return found


def test_images_of_a_conditional_model_are_checked_by_their_pixels(colour_model, colour_samples, tmp_path, capsys):
    folder = shutil.copytree(colour_samples, tmp_path / "samples")
    found = true_images(folder)
    circle, square = CLASSES.index("red circle"), CLASSES.index("blue square")
    ours, theirs = (found.files[found.labels.index(label)] for label in (circle, square))
    shutil.copy(theirs, ours)  # one of the two red circles is a blue square
    report = evaluate_model(colour_model, COLOUR, tmp_path / "out", request_of(folder))
    labels = report["labels"]
    assert (labels["checker"], labels["images"], labels["real_images"]) == ("shapes checker", 48, 12)
    assert labels["accuracy"] == pytest.approx(47 / 48) and labels["real_accuracy"] == 1
    assert labels["by_class"] == {name: 0.5 if name == "red circle" else 1 for name in CLASSES}
    page, shown = (tmp_path / "out" / "report.md").read_text(), capsys.readouterr().err
    assert "| samples that show their label | 97.9% of 48 (shapes checker) |" in page
    assert "| … the worst labels | red circle 50.0%, " in page
    assert "| label, worst first | shown |\n|---|---|\n| red circle | 50.0% |\n" in page
    assert "97.9% of 48" in shown and "red circle 50.0%" in shown


def test_grey_images_are_checked_by_a_classifier_at_the_size_of_the_model(
    grey_model, grey_samples, classifier, tmp_path
):
    larger = GREY.model_copy(update={"preprocess": GREY.preprocess.model_copy(update={"size": 24})})
    report = evaluate_model(grey_model, larger, tmp_path, request_of(grey_samples, classifier))
    found, real = read_samples(grey_samples), open_images(GREY, "test").read_batch(range(12))
    model = load_classifier(classifier)
    right = model(found.read_images(range(30))) == torch.tensor(found.labels)
    assert report["labels"]["accuracy"] == pytest.approx(right.float().mean().item())
    expected = (model(real.image) == real.label).float().mean().item()
    assert report["labels"]["real_accuracy"] == pytest.approx(expected) and report["labels"]["real_images"] == 12


def test_an_image_pipeline_is_judged_by_its_own_samples(image_pipeline, tmp_path):
    samples = sample(image_pipeline, tmp_path / "samples", SampleRequest(num_images=24))
    true_images(samples)
    report = evaluate_model(image_pipeline, COLOUR, tmp_path / "out", request_of(samples))
    assert report["labels"]["accuracy"] == 1 and report["codebook"] is not None


def test_samples_of_another_prior_are_refused(image_pipeline, refused, tmp_path):
    samples = sample(image_pipeline, tmp_path / "samples", SampleRequest(num_images=24))
    pipeline = ImageGenerationPipeline.from_pretrained(image_pipeline)
    pipeline.prior.model.network.to_logits.weight.data += 1
    other = pipeline.save_pretrained(tmp_path / "other")
    assert "--samples: " in (message := refused(other, COLOUR, samples)) and "of another prior" in message


def test_labels_are_read_from_full_colours_also_of_a_model_of_binarised_ones(colour_model, colour_samples, tmp_path):
    """Samples are the likelihood's mean, which is not binary; so are the real images beside them."""
    binary = COLOUR.model_copy(update={"binarize": Binarize(method="dynamic")})
    labels = evaluate_model(colour_model, binary, tmp_path, request_of(colour_samples))["labels"]
    assert (labels["checker"], labels["real_accuracy"]) == ("shapes checker", 1)


def test_without_samples_nothing_is_asked_of_labels(colour_model, tmp_path):
    report = evaluate_model(colour_model, COLOUR, tmp_path, EvaluationRequest(draws=2, max_images=3))
    assert report["labels"] is None and "label" not in (tmp_path / "report.md").read_text()
    assert report["request"].keys() == {"fingerprint", "weights", "images", "split", "max_images", "draws"}


def test_an_evaluation_from_before_samples_could_be_given_is_finished(colour_model, tmp_path, capsys):
    request = EvaluationRequest(draws=2, max_images=3)
    report = evaluate_model(colour_model, COLOUR, tmp_path, request)
    del report["labels"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert evaluate_model(colour_model, COLOUR, tmp_path, request) == report
    assert "already evaluated" in capsys.readouterr().err


def test_the_same_samples_and_classifier_are_evaluated_once_and_others_refused(
    grey_model, grey_samples, classifier, tmp_path, capsys
):
    request, output = request_of(grey_samples, classifier), tmp_path / "out"
    first = evaluate_model(grey_model, GREY, output, request)
    moved = shutil.copytree(grey_samples, tmp_path / "moved")
    assert evaluate_model(grey_model, GREY, output, request_of(moved, classifier / "best", batch_size=3)) == first
    assert "already evaluated" in capsys.readouterr().err
    other = sample(grey_model, tmp_path / "other", SampleRequest(num_images=30, seed=1))
    reseeded = changed(classifier / "best", tmp_path / "reseeded", "config.json", seed=1)
    for unlike in (request_of(other, classifier), request_of(grey_samples, reseeded), request_of(None)):
        with pytest.raises(UserError, match=r"holds an evaluation of .* other samples or other options"):
            evaluate_model(grey_model, GREY, output, unlike)


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """evaluate_model(…) -> the message that refuses it, before the likelihood is measured and the output touched."""

    def refuse(model, data, samples, classifier=None):
        monkeypatch.setattr("pipelines.evaluate_model.measure_images", lambda *_: pytest.fail("is measured"))
        with pytest.raises(UserError) as error:
            evaluate_model(model, data, tmp_path / "out", request_of(samples, classifier))
        assert not (tmp_path / "out").exists()
        return str(error.value)

    return refuse


def test_a_folder_without_finished_samples_is_refused(refused, colour_model, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, words in (("nowhere", "no such folder"), ("empty", "holds no finished samples")):
        said = refused(colour_model, COLOUR, tmp_path / name)
        assert said.startswith(f"--samples: {tmp_path / name}: {words}")
        assert said.endswith("expected the output of `smalti sample`")


def test_samples_without_labels_are_refused(refused, tmp_path):
    model = write_vae(tmp_path / "t", image_size=32, channels=3, likelihood={"kind": "normal"})
    samples = sample(model, tmp_path / "samples", SampleRequest(num_images=2))
    said = refused(model, COLOUR, samples)
    assert said == f"--samples: {samples}: found samples without a label, expected class-conditional ones"


def test_samples_of_other_classes_are_refused(refused, colour_model, colour_samples, tmp_path):
    samples = changed(colour_samples, tmp_path / "s", "samples.json", classes=["boot", "bag"])
    said = refused(colour_model, COLOUR, samples)
    assert said.startswith(f"--samples: {samples}: the classes are 2: boot, bag; the data has 24: red circle")


def test_samples_of_another_size_are_refused(refused, colour_model, grey_samples):
    said = refused(colour_model, COLOUR, grey_samples).removeprefix(f"--samples: {grey_samples}: ")
    assert said == "found images of shape (1, 16, 16) (c, h, w), the model's are (3, 32, 32)"


def test_samples_of_another_model_are_refused(refused, colour_samples, tmp_path):
    model = {"image_size": 32, "channels": 3, "likelihood": {"kind": "normal"}, "condition": CONDITION}
    other = write_vae(tmp_path / "t", seed=1, classes=CLASSES, **model)
    assert f"--samples: {colour_samples}: found samples of another tokenizer" in refused(other, COLOUR, colour_samples)


def test_a_classifier_that_is_missing_or_not_needed_is_named(
    refused, colour_model, colour_samples, grey_model, grey_samples, classifier
):
    assert refused(grey_model, GREY, grey_samples).startswith("--classifier: found none, expected the run of")
    said = refused(colour_model, COLOUR, colour_samples, classifier)
    assert said.startswith(f"--classifier: found {classifier}, expected none")
    said = refused(grey_model, GREY, None, classifier)
    assert said.startswith(f"--classifier: found {classifier} without --samples")


def test_a_classifier_that_is_none_or_does_not_fit_is_named(refused, grey_model, grey_samples, classifier, tmp_path):
    said = refused(grey_model, GREY, grey_samples, tmp_path / "nowhere")
    assert said.startswith(f"--classifier: {tmp_path / 'nowhere'}: no such folder")
    said = refused(grey_model, GREY, grey_samples, grey_model)
    assert said.startswith("--classifier: ") and "expected 'smalti-classifier/1'" in said
    larger = changed(classifier / "best", tmp_path / "larger", "config.json", preprocess={"mode": "L", "size": 32})
    said = refused(grey_model, GREY, grey_samples, larger)
    assert said == f"--classifier: {larger}: was trained on images of 32 x 32 L; the samples are of 16 x 16 L"


@pytest.mark.parametrize("option", ["--samples", "--classifier"])
def test_the_command_line_names_the_option(option, grey_model, grey_samples, tmp_path, monkeypatch, capsys):
    (tmp_path / "data.yaml").write_text(json.dumps({"data": GREY.model_dump(mode="json")}))
    options = {
        "--samples": grey_samples,
        "--data": tmp_path / "data.yaml",
        option: "nowhere",
        "--output": tmp_path / "out",
    }
    arguments = ["smalti", "evaluate", grey_model, *itertools.chain(*options.items())]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and capsys.readouterr().err.startswith(f"smalti: {option}: nowhere: no such folder")


def test_the_shipped_recipe_of_a_classifier_is_that_of_its_pipeline():
    shipped = load_recipe("configs/fashion_mnist/classifier.yaml")
    assert shipped == classifier_recipe(load_pipeline("configs/fashion_mnist/pipeline.yaml"))
