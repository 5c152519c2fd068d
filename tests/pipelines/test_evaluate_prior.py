"""`smalti evaluate` of an image pipeline: what the codes of held-out images cost by its prior."""

import csv
from pathlib import Path

import pytest
import torch

from pipelines.base.errors import UserError
from pipelines.data import SPLITS, open_images
from pipelines.evaluate_model import EvaluationRequest, evaluate_model
from pipelines.models.image_pipeline import ImageGenerationPipeline
from prior import sequence_bits
from tests.pipelines.conftest import shapes_data
from tests.pipelines.models.test_prompts import LENGTH, build
from tests.pipelines.test_partly_labelled import write_images

DATA = shapes_data(train=16, test=9)


@pytest.fixture(scope="module")
def captioned(tiny_tokens, tmp_path_factory) -> Path:
    return build(tiny_tokens).save_pretrained(tmp_path_factory.mktemp("evaluated") / "p")


def codes_and_rows(folder: Path):
    batch = open_images(DATA, "test").read_batch(range(9))
    pipe = ImageGenerationPipeline.from_pretrained(folder)
    with torch.no_grad():
        return pipe, pipe.tokenizer.model.encode(batch.image).codes, batch


def test_bits_are_given_with_and_without_the_caption(captioned, tmp_path):
    report = evaluate_model(captioned, DATA, tmp_path, EvaluationRequest(batch_size=4))
    pipe, codes, batch = codes_and_rows(captioned)
    words = pipe.prior.captions.encode([row.text for row in batch.metadata], LENGTH)
    expected = sequence_bits(pipe.prior.model, codes, words) / 64
    assert report["figures"]["bits_per_token"]["mean"] == pytest.approx(expected.mean().item(), rel=1e-4)
    without = sequence_bits(pipe.prior.model, codes).mean().item() / 64
    assert report["figures"]["bits_per_token_without_caption"]["mean"] == pytest.approx(without, rel=1e-4)
    with (tmp_path / "images.csv").open() as file:
        found = [float(row["bits_per_token"]) for row in csv.DictReader(file)]
    assert found == pytest.approx(expected.tolist(), rel=1e-4)
    text = (tmp_path / "report.md").read_text()
    assert "bits per token of the prior" in text and "… without the captions" in text and "`smalti run`" not in text


def test_bits_are_given_the_label(image_pipeline, tmp_path):
    report = evaluate_model(image_pipeline, DATA, tmp_path)
    pipe, codes, batch = codes_and_rows(image_pipeline)
    expected = sequence_bits(pipe.prior.model, codes, batch.label).mean().item() / 64
    assert report["figures"]["bits_per_token"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert "bits_per_token_without_caption" not in report["figures"]


def test_labels_that_mean_something_else_are_not_read(image_pipeline, tmp_path):
    files = {
        split: write_images(tmp_path / f"{split}.parquet", [0, 1] * 4) for split in ("train", "validation", "test")
    }
    source = {"kind": "huggingface", "path": "parquet", "data_files": files, "label": "label"}
    data = DATA.model_validate({"source": source, "preprocess": {"mode": "RGB", "size": 32}})
    report = evaluate_model(image_pipeline, data, tmp_path / "out")
    pipe = ImageGenerationPipeline.from_pretrained(image_pipeline)
    with torch.no_grad():
        codes = pipe.tokenizer.model.encode(open_images(data, "test").read_batch(range(8)).image).codes
    expected = sequence_bits(pipe.prior.model, codes).mean().item() / 64
    assert report["figures"]["bits_per_token"]["mean"] == pytest.approx(expected, rel=1e-4)


def test_a_prior_that_needs_captions_is_not_measured_without(tiny_tokens, tmp_path):
    folder = build(tiny_tokens, condition_dropout=0.0).save_pretrained(tmp_path / "p")
    files = {split: write_images(tmp_path / f"{split}.parquet", [0] * 8) for split in SPLITS}
    source = {"kind": "huggingface", "path": "parquet", "data_files": files}
    data = DATA.model_validate({"source": source, "preprocess": {"mode": "RGB", "size": 32}})
    report = evaluate_model(folder, data, tmp_path / "out")
    assert "bits_per_token" not in report["figures"]
    assert any(note.startswith("the prior is not measured: the images have no captions") for note in report["notes"])
    figures = evaluate_model(folder, DATA, tmp_path / "captions")["figures"]
    assert "bits_per_token" in figures and "bits_per_token_without_caption" not in figures


def test_another_prior_of_the_same_tokenizer_is_another_evaluation(captioned, image_pipeline, tmp_path):
    evaluate_model(captioned, DATA, tmp_path, EvaluationRequest(max_images=2))
    with pytest.raises(UserError, match="holds an evaluation of another model"):
        evaluate_model(image_pipeline, DATA, tmp_path, EvaluationRequest(max_images=2))


def test_a_tokenizer_alone_has_no_bits(tiny_tokenizer, tmp_path):
    report = evaluate_model(tiny_tokenizer, DATA, tmp_path, EvaluationRequest(max_images=2))
    assert "bits_per_token" not in report["figures"] and "`smalti run`" in report["notes"][0]
