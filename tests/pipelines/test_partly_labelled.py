"""Data of which some rows have no label: from images over tokens to the figures of a prior and a classifier."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from pipelines.base.errors import UserError
from pipelines.data import DataConfig, open_images
from pipelines.encode import encode
from pipelines.evaluate.classifier import ClassifierTask
from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.evaluate.label_accuracy import label_accuracy
from pipelines.evaluate.samples import Samples
from pipelines.evaluate.token_bits import token_bits
from pipelines.models.checkpoint import load_prior
from pipelines.tokens.dataset import TokenDataset
from pipelines.training.conditioning import Conditioning
from pipelines.training.config import TrainingConfig
from pipelines.training.prior_task import PriorTask
from prior import PriorPhase, TransformerConfig, sequence_bits

LABELS = [0, 1, None, 0, 1, None]
TRAINING = TrainingConfig(steps=2, batch_size=12)
TINY = TransformerConfig(dim=16, depth=1, heads=1, head_dim=16)


def write_images(path: Path, labels: list[int | None]) -> str:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    random = np.random.default_rng(len(labels))
    images = [Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)) for _ in labels]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    Dataset.from_dict({"image": images, "label": labels}, features).to_parquet(path)
    return str(path)


def data_of(folder: Path, **labels: list[int | None]) -> DataConfig:
    files = {split: write_images(folder / f"{split}.parquet", found) for split, found in labels.items()}
    source = {"kind": "huggingface", "path": "parquet", "data_files": files, "label": "label"}
    return DataConfig.model_validate({"source": source, "preprocess": {"mode": "RGB", "size": 32}})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    folder = tmp_path_factory.mktemp("data")
    return data_of(folder, train=LABELS * 6, validation=LABELS * 2, test=[None] * 4)  # the test labels are withheld


@pytest.fixture(scope="module")
def tokens(data, tiny_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    encode(tiny_tokenizer, data, folder)
    return folder


def prior_task(tokens: Path, dropout: float = 0.1) -> PriorTask:
    return PriorTask(tokens, Conditioning("label", dropout), TINY, TRAINING, seed=0)


def test_tokens_keep_every_row_and_its_label(tokens):
    dataset = TokenDataset.open(tokens)
    assert dataset.spec.classes == ("cat", "dog")
    found = {name: dataset.split(name).labels.tolist() for name in ("train", "validation", "test")}
    expected = [-1 if label is None else label for label in LABELS]
    assert found == {"train": expected * 6, "validation": expected * 2, "test": [-1] * 4}


def test_a_prior_is_trained_under_the_null_condition_where_there_is_no_label(tokens):
    task = prior_task(tokens, dropout=0)
    phase = cast(PriorPhase, task.phases["prior"].phase)
    (batch, _) = task.batches(0, 0, 1)
    labels = batch["label"].tolist()
    assert -1 in labels and max(labels) >= 0
    alone = [
        phase.model(codes[None], None if label < 0 else torch.tensor([label]))
        for codes, label in zip(batch["codes"], labels, strict=True)
    ]
    expected = cross_entropy(torch.cat(alone).flatten(0, 1), batch["codes"].flatten())
    assert phase(batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_held_out_bits_are_those_given_the_label_or_the_null_condition(tokens, tmp_path):
    task = prior_task(tokens)
    task.publish({"prior": cast(PriorPhase, task.phases["prior"].phase).model}, tmp_path)
    batch, prior = TokenDataset.open(tokens).split("validation").batch(range(12)), load_prior(tmp_path).model
    bits = [
        sequence_bits(prior, codes[None], None if label < 0 else label[None])
        for codes, label in zip(batch["codes"], batch["label"], strict=True)
    ]
    expected = torch.cat(bits).mean().item() / 64
    assert token_bits(tmp_path, tokens, "validation").prior == pytest.approx(expected, rel=1e-5)


def test_a_null_condition_that_is_never_trained_is_refused(tiny_tokenizer, tmp_path):
    data = data_of(tmp_path, train=[0, 1] * 6, validation=LABELS)
    encode(tiny_tokenizer, data, tmp_path / "tokens", ["train", "validation"])
    with pytest.raises(UserError, match="condition_dropout: found 0"):
        prior_task(tmp_path / "tokens", dropout=0)
    assert prior_task(tmp_path / "tokens").classes == ("cat", "dog")


def test_where_training_rows_lack_labels_nothing_need_be_dropped(tokens):
    assert prior_task(tokens, dropout=0).classes == ("cat", "dog")


def test_a_prior_without_a_single_label_is_refused(tiny_tokenizer, tmp_path):
    data = data_of(tmp_path, train=[None] * 12, validation=LABELS)
    encode(tiny_tokenizer, data, tmp_path / "tokens", ["train", "validation"])
    with pytest.raises(UserError, match=r"condition: found 'label'.* has no labels; expected 'none'"):
        prior_task(tmp_path / "tokens")


def test_a_classifier_is_trained_on_labelled_images_alone(data, tmp_path):
    task = ClassifierTask(ClassifierRecipe(output=tmp_path, data=data, width=1, training=TRAINING))
    assert (len(task.images), len(task.held_out)) == (24, 8)
    assert all(batch["label"].min() >= 0 for batch in task.batches(0, 0, 1))


@pytest.mark.parametrize(("split", "real_images"), [("validation", 8), ("test", 0)])
def test_real_images_without_a_label_are_not_asked_for_one(data, tmp_path, monkeypatch, split, real_images):
    images = open_images(data, split).read_batch([0]).image
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    samples = Samples(tmp_path, [tmp_path / "0.png"], [1], ["cat", "dog"], [0.0])
    always_dog = lambda images: torch.ones(len(images), dtype=torch.int64)  # noqa: E731
    monkeypatch.setattr("pipelines.evaluate.label_accuracy.label_checker", lambda *_: ("always dog", always_dog))
    found = label_accuracy(samples, data, split=split)
    assert (found.real_images, found.real_accuracy) == (real_images, 0.5 if real_images else 0)
