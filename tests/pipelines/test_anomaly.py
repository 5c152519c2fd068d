"""Anomaly scores are those of the model, and the area under the curve is the share of pairs in the right order."""

import csv
import itertools

import numpy as np
import pytest
from PIL import Image

from pipelines.anomaly import AnomalyRequest, score_anomalies
from pipelines.base.errors import UserError
from pipelines.data import open_images
from pipelines.evaluate import image_likelihood
from pipelines.evaluate.anomaly_scores import area_under_curve
from pipelines.evaluate.model_report import meaning_of
from pipelines.evaluate_model import EvaluationRequest, evaluate_model
from pipelines.models.checkpoint import load_tokenizer
from pipelines.recipes.data_arguments import data_of
from tests.pipelines.conftest import grey_data

DATA = grey_data(train=8, test=40)
FEW = AnomalyRequest(draws=10, max_images=30)


def scores(output):
    with (output / "scores.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("seed", range(4))
def test_the_area_is_the_share_of_pairs_in_the_right_order(seed):
    generator = np.random.default_rng(seed)
    values, foreign = generator.integers(0, 6, 40).astype(float), generator.random(40) < 0.3
    pairs = list(itertools.product(values[foreign], values[~foreign]))
    expected = sum((strange > known) + (strange == known) / 2 for strange, known in pairs) / len(pairs)
    assert area_under_curve(values, foreign) == pytest.approx(expected)


def test_the_area_of_a_perfect_score_is_one_and_of_one_kind_unknown():
    values = np.array([0.0, 1.0, 2.0])
    assert area_under_curve(values, values > 0.5) == 1
    assert area_under_curve(values, values < 0.5) == 0
    assert area_under_curve(values, values > 9) is None


def test_scores_are_the_bounds_of_each_image(tiny_vae, tmp_path):
    report = score_anomalies(tiny_vae, DATA, tmp_path / "out", FEW)
    evaluate_model(tiny_vae, DATA, tmp_path / "same", EvaluationRequest(draws=10, max_images=30))
    with (tmp_path / "same" / "images.csv").open() as file:
        expected = list(csv.DictReader(file))
    found = scores(tmp_path / "out")
    for name in ("key", "label", "negative_elbo", "nll"):
        assert [row[name] for row in found] == [row[name] for row in expected]
    assert report["images"] == 30 and report["roc_auc"] is None


def test_labels_say_which_images_are_foreign(tiny_vae, tmp_path):
    images = open_images(DATA, "test")
    title = (images.classes or [])[images.read_batch([0]).metadata[0].label or 0]
    report = score_anomalies(tiny_vae, DATA, tmp_path, FEW.model_copy(update={"foreign": (title,)}))
    rows = scores(tmp_path)
    assert {row["label"] for row in rows if row["foreign"] == "1"} == {title}
    assert title not in {row["label"] for row in rows if row["foreign"] == "0"}
    values = np.array([float(row["nll"]) for row in rows])
    foreign = np.array([row["foreign"] == "1" for row in rows])
    assert report["foreign"] == foreign.sum()
    assert report["roc_auc"]["nll"] == pytest.approx(area_under_curve(values, foreign), abs=0.01)
    assert report["roc_auc"].keys() == {"negative_elbo", "nll"}
    with Image.open(tmp_path / "scores.png") as figure:
        assert figure.size[0] > 500


def test_another_data_set_is_foreign(tiny_vae, tmp_path):
    noise = grey_data(None, train=8, test=25)
    report = score_anomalies(tiny_vae, DATA, tmp_path, FEW, noise)
    assert (report["images"], report["foreign"]) == (55, 25)
    assert [row["foreign"] for row in scores(tmp_path)] == ["0"] * 30 + ["1"] * 25
    assert report["notes"] == ["the foreign images: " + meaning_of(load_tokenizer(tiny_vae).model, False)]
    assert not (tmp_path / "foreign").exists() and not (tmp_path / "unfinished").exists()


def test_each_data_set_has_its_own_names(tiny_vae, tmp_path):
    folder = tmp_path / "images"
    for name in ("dog", "cat"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (16, 16), 80 * i).save(folder / name / f"{i}.png")
    pets = data_of(str(folder), tiny_vae, whole=True)
    assert score_anomalies(tiny_vae, DATA, tmp_path / "out", FEW, pets)["foreign"] == 6  # the whole folder
    names = {kind: {row["label"] for row in scores(tmp_path / "out") if row["foreign"] == kind} for kind in "01"}
    assert names["1"] == {"dog", "cat"} and names["0"] <= set(open_images(DATA, "test").classes or ())


def test_codes_are_scored_by_the_error_of_the_reconstruction(tiny_tokenizer, make_data, tmp_path):
    data = make_data(train=8, test=20)
    report = score_anomalies(tiny_tokenizer, data, tmp_path, AnomalyRequest(foreign=(0, 1, 2, 3, 4, 5)))
    assert report["roc_auc"].keys() == {"reconstruction_nll"}
    assert all(float(row["reconstruction_nll"]) for row in scores(tmp_path))


def test_a_finished_one_is_left_alone_a_killed_one_continues_and_another_one_is_refused(
    tiny_vae, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(image_likelihood, "CPU_BYTES", 2**16)  # few images in a pass
    expected = score_anomalies(tiny_vae, DATA, tmp_path / "whole", FEW)
    bounds_of, calls = image_likelihood.bounds_of, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return bounds_of(*arguments)

    monkeypatch.setattr(image_likelihood, "bounds_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_anomalies(tiny_vae, DATA, tmp_path / "out", FEW)
    assert score_anomalies(tiny_vae, DATA, tmp_path / "out", FEW) == expected
    assert (tmp_path / "out" / "scores.csv").read_text() == (tmp_path / "whole" / "scores.csv").read_text()
    before = len(calls)
    assert score_anomalies(tiny_vae, DATA, tmp_path / "out", FEW) == expected
    assert len(calls) == before and "already scored" in capsys.readouterr().err
    with pytest.raises(UserError, match="another request"):
        score_anomalies(tiny_vae, DATA, tmp_path / "out", AnomalyRequest(draws=11))


def test_a_label_that_the_data_does_not_have_is_named(tiny_vae, tmp_path):
    with pytest.raises(UserError, match="--foreign: found 'dog'"):
        score_anomalies(tiny_vae, DATA, tmp_path / "out", AnomalyRequest(foreign=("dog",)))
