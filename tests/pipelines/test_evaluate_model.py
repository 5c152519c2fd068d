"""`smalti evaluate`: the figures are those of the model, however they are computed and however often it is killed."""

import csv
import json
import math
import statistics

import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.data import DataConfig, open_images
from pipelines.evaluate import image_likelihood
from pipelines.evaluate.disentanglement import disentanglement
from pipelines.evaluate.image_likelihood import images_per_pass, mean_of
from pipelines.evaluate.latent_window import latent_window
from pipelines.evaluate_model import EvaluationRequest, evaluate_model
from pipelines.models.checkpoint import load_tokenizer
from pipelines.training.tokenizer_task import posterior_stream
from tests.pipelines.conftest import grey_data, write_conditional_vae, write_vae
from tokenizer import likelihood_bounds, psnr

DATA = grey_data(train=32, test=13)
FEW = EvaluationRequest(draws=20)


def of_images(output):
    with (output / "images.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_figures_are_means_of_the_bounds_of_each_image(tiny_vae, tmp_path):
    report = evaluate_model(tiny_vae, DATA, tmp_path, EvaluationRequest(draws=300))
    model, batch = load_tokenizer(tiny_vae).model, open_images(DATA, "test").read_batch(range(13))
    streams = [posterior_stream(0, row.key) for row in batch.metadata]
    bounds = likelihood_bounds(model, batch.image, 300, streams)
    with torch.no_grad():
        likeness = psnr(model.reconstruct(batch.image), batch.image)
    found = {"negative_elbo": bounds.negative_elbo, "nll": bounds.nll, "psnr": likeness}
    for name, values in found.items():
        numbers = values.tolist()
        assert report["figures"][name]["mean"] == pytest.approx(statistics.mean(numbers), rel=1e-5)
        error = statistics.stdev(numbers) / math.sqrt(13)
        assert report["figures"][name]["standard_error"] == pytest.approx(error, rel=1e-3)
    rows = of_images(tmp_path)
    assert [row["key"] for row in rows] == [row.key for row in batch.metadata]
    assert [float(row["nll"]) for row in rows] == pytest.approx(bounds.nll.tolist(), rel=1e-4)
    assert report["images"] == 13 and report["dims"] == 256 and report["draws"] == 300


def test_no_batch_size_changes_a_figure(tiny_vae, tmp_path):
    reports = [
        evaluate_model(tiny_vae, DATA, tmp_path / str(size), EvaluationRequest(draws=20, batch_size=size))
        for size in (1, 5, 64)
    ]
    for name in ("nll", "negative_elbo", "psnr"):
        first, *others = [report["figures"][name]["mean"] for report in reports]
        assert others == pytest.approx([first, first], rel=1e-5)


def test_a_killed_evaluation_continues(tiny_vae, tmp_path, monkeypatch):
    whole = evaluate_model(tiny_vae, DATA, tmp_path / "whole", EvaluationRequest(draws=20, batch_size=4))
    measured, bounds_of = [], image_likelihood.bounds_of

    def interrupted(model, batch, draws):
        if len(measured) == 8:
            raise KeyboardInterrupt
        measured.extend(row.key for row in batch.metadata)
        return bounds_of(model, batch, draws)

    monkeypatch.setattr(image_likelihood, "bounds_of", interrupted)
    output = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(tiny_vae, DATA, output, EvaluationRequest(draws=20, batch_size=4))
    (file,) = (output / "unfinished").glob("0.jsonl")
    file.write_text(file.read_text()[:-20])  # the last line is torn: its pass is measured again
    assert not (output / "report.json").exists()
    monkeypatch.setattr(
        image_likelihood, "bounds_of", lambda *args: measured.extend([""] * len(args[1])) or bounds_of(*args)
    )
    assert evaluate_model(tiny_vae, DATA, output, EvaluationRequest(draws=20, batch_size=4)) == whole
    assert len(measured) == 8 + 9
    assert (output / "images.csv").read_text() == (tmp_path / "whole" / "images.csv").read_text()
    assert not (output / "unfinished").exists()


def test_a_finished_evaluation_is_left_alone_and_another_one_refused(tiny_vae, tmp_path, capsys):
    first = evaluate_model(tiny_vae, DATA, tmp_path, FEW)
    stamp = (tmp_path / "likelihood.png").stat().st_mtime_ns
    assert evaluate_model(tiny_vae, DATA, tmp_path, FEW) == first
    assert (tmp_path / "likelihood.png").stat().st_mtime_ns == stamp
    assert "already evaluated" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds an evaluation of another model"):
        evaluate_model(tiny_vae, DATA, tmp_path, EvaluationRequest(draws=21))
    assert evaluate_model(tiny_vae, DATA, tmp_path, EvaluationRequest(draws=21), overwrite=True)["draws"] == 21


def test_a_report_that_is_damaged_is_written_again(tiny_vae, tmp_path):
    first = evaluate_model(tiny_vae, DATA, tmp_path, FEW)
    content = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps(content | {"figures": 3}))
    assert evaluate_model(tiny_vae, DATA, tmp_path, FEW) == first


def test_the_report_is_for_people_too(tiny_vae, tmp_path, capsys):
    report = evaluate_model(tiny_vae, DATA, tmp_path, FEW)
    shown, page = capsys.readouterr().err, (tmp_path / "report.md").read_text()
    nll = report["figures"]["nll"]["mean"]
    bits = f"{nll / 256 / math.log(2):.4f} ± "
    for text in (f"{nll:.2f} ± ", bits, "20 draws an image", "effective draws", "latent"):
        assert text in page and text.split()[0] in shown
    for name in ("likelihood.png", "latents.png"):
        assert f"({name})" in page
        with Image.open(tmp_path / name) as figure:
            assert figure.size[0] > 500


@pytest.mark.parametrize(
    ("likelihood", "binarize", "is_mass", "words"),
    [
        ("bernoulli", "threshold", True, "a probability of black or white pixels. It compares"),
        ("bernoulli", None, True, "the mean over random roundings"),
        ("categorical", None, True, "a probability of pixels of 256 values. It compares"),
        ("normal", None, False, "a density over continuous pixels"),
    ],
)
def test_it_says_what_the_likelihood_compares_with(tmp_path, likelihood, binarize, is_mass, words):
    folder = write_vae(tmp_path / "t", likelihood={"kind": likelihood})
    report = evaluate_model(folder, grey_data(binarize, train=8, test=3), tmp_path / "out", FEW)
    assert report["likelihood"]["is_mass"] is is_mass
    assert words in report["likelihood"]["meaning"] and words in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("bottleneck", [{"kind": "vq", "num_codes": 32, "dim": 4}, {"kind": "deterministic", "dim": 4}])
def test_a_latent_that_is_not_random_has_a_reconstruction_and_no_likelihood(
    make_tokenizer, make_data, tmp_path, bottleneck
):
    folder, data = make_tokenizer(tmp_path / "t", bottleneck), make_data(train=8, test=9)
    report = evaluate_model(folder, data, tmp_path / "out", EvaluationRequest(batch_size=4))
    model, images = load_tokenizer(folder).model, open_images(data, "test").read_batch(range(9)).image
    with torch.no_grad():
        expected = model(images).terms["nll"].mean().item()
    assert report["figures"].keys() == {"reconstruction_nll", "psnr"}
    assert report["figures"]["reconstruction_nll"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert report["draws"] is None and report["notes"]
    discrete = bottleneck["kind"] == "vq"
    assert (report["codebook"] is not None) == discrete and (report["latent_health"] is None) == discrete


def test_images_without_labels_are_refused_by_a_model_that_needs_them(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("L", (16, 16), 60 * i).save(tmp_path / "images" / f"{i}.png")
    source = {"kind": "huggingface", "path": "imagefolder", "arguments": {"data_dir": str(tmp_path / "images")}}
    content = {"source": source, "preprocess": {"mode": "L", "size": 16}, "test_fraction": 0.5}
    data = DataConfig.model_validate(content | {"binarize": {"method": "threshold"}})
    evaluate_model(write_conditional_vae(tmp_path / "learned", ("a", "b"), dropout=0.1), data, tmp_path / "out", FEW)
    folder = write_conditional_vae(tmp_path / "needs", ("a", "b"))
    with pytest.raises(UserError, match=r"data: has no labels; .* images with labels only, a, b, and"):
        evaluate_model(folder, data, tmp_path / "refused", FEW)


def test_a_condition_is_given_to_the_model(tmp_path):
    classes = tuple(open_images(DATA, "test").classes or ())
    condition = {"kind": "concatenation", "num_classes": len(classes), "dim": 4}
    folder = write_vae(tmp_path / "t", classes=classes, condition=condition)
    report = evaluate_model(folder, DATA, tmp_path / "out", FEW)
    model, batch = load_tokenizer(folder).model, open_images(DATA, "test").read_batch(range(13))
    streams = [posterior_stream(0, row.key) for row in batch.metadata]
    expected = likelihood_bounds(model, batch.image, 20, streams, batch.label).nll.mean().item()
    assert report["figures"]["nll"]["mean"] == pytest.approx(expected, rel=1e-5)


def test_memory_is_bounded_by_the_images_of_a_pass(tiny_vae):
    model = load_tokenizer(tiny_vae).model
    assert images_per_pass(model, 5000, 64) == 32  # 250 draws of 16 x 16 pixels each, 8 MiB in all
    assert images_per_pass(model, 10**6, 64) == 32
    assert images_per_pass(model, 5000, 3) == 3
    assert images_per_pass(model, 1, 10**6) == 2**13


def test_a_single_image_has_no_standard_error():
    assert mean_of([3.0]).standard_error is None
    assert mean_of([1.0, 3.0]).standard_error == pytest.approx(1.0)


def test_data_with_factors_has_a_report_of_disentanglement(tiny_vae, tmp_path):
    pytest.importorskip("sklearn")
    data = grey_data(train=8, test=300, two_object_fraction=0)
    report = evaluate_model(tiny_vae, data, tmp_path, EvaluationRequest(draws=2, max_images=250))
    scores = report["disentanglement"]
    assert scores["rows"] == 250 and scores["latents"] == 5 and scores["dci"] is not None
    images = open_images(data, "test")
    window = latent_window(load_tokenizer(tiny_vae).model, images, range(250), 64)
    factors = images.factors(range(250))
    assert window.means is not None and factors is not None
    expected = disentanglement(window.means.numpy(), factors.values, factors.names, 0, ("mig",)).mig
    assert scores["mig"] == pytest.approx(expected)
    assert f"| MIG | {expected:.4f} |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "mutual_information.png").is_file()


def test_scores_that_cannot_be_had_are_noted(tiny_vae, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    data = grey_data(train=8, test=60, two_object_fraction=0)
    report = evaluate_model(tiny_vae, data, tmp_path, FEW)
    assert report["disentanglement"]["sap"] is None
    assert any("smalti[disentanglement]" in note for note in report["notes"])
