"""What every source of images promises. The sources are the members of the union; each needs an example."""

import contextlib
import json
import os
import pickle
import threading
from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter

from pipelines.data import SPLITS, DataConfig, Example, SourceConfig, Unreadable, open_images, training_loader
from pipelines.data.image_files import DECODE_ERRORS
from tests.pipelines.conftest import read_example
from tests.pipelines.data.conftest import EXAMPLES, build_example

KINDS = [member.model_fields["kind"].default for member in get_args(get_args(SourceConfig)[0])]


@pytest.fixture(params=[(kind, name) for kind in KINDS for name in EXAMPLES.get(kind, ["no example"])], ids=str)
def recipe(request) -> DataConfig:
    kind, name = request.param
    recipe = build_example(name, request)
    assert recipe.source.kind == kind
    return recipe


def readable(recipe: DataConfig, split: str = "train"):
    dataset = open_images(recipe, split)
    return dataset, [i for i in range(len(dataset)) if isinstance(dataset.read(i), Example)]


def test_no_example_is_of_an_unknown_kind():
    assert set(EXAMPLES) == set(KINDS)


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_is_an_example_or_named_as_unreadable(recipe, split):
    dataset = open_images(recipe, split)
    assert len(dataset) > 0
    for i in range(len(dataset)):
        found = dataset.read(i)
        assert found.key == dataset.key(i) != ""
        if isinstance(found, Example):
            channels, size = recipe.preprocess.channels, recipe.preprocess.size
            assert found.image.shape == (channels, size, size) and found.image.dtype == torch.uint8
        else:
            assert found.reason


def test_labels_number_the_classes(recipe):
    dataset, rows = readable(recipe)
    for found in (read_example(dataset, row) for row in rows):
        assert found.label is None or 0 <= found.label < len(dataset.classes)
    labelled = any(read_example(dataset, row).label is not None for row in rows)
    assert labelled == (dataset.classes is not None)


def test_texts_are_announced(recipe):
    dataset, rows = readable(recipe)
    assert dataset.has_text == any(read_example(dataset, i).text is not None for i in rows)


def same(a: Example | Unreadable, b: Example | Unreadable) -> bool:
    if isinstance(a, Unreadable) or isinstance(b, Unreadable):
        return a == b
    known = [(e.key, e.label, e.text, e.factors) for e in (a, b)]
    return known[0] == known[1] and torch.equal(a.image, b.image)


@pytest.mark.parametrize("order", ["ascending", "descending", "repeated"])
def test_a_batch_is_its_rows_one_by_one(recipe, order):
    dataset = open_images(recipe, "train")
    n = len(dataset)
    rows = {"ascending": range(n), "descending": range(n - 1, -1, -1), "repeated": [3, 1, 3, n - 1, 1]}[order]
    batch = dataset.read_batch(rows)
    bad, images = dict(batch.unreadable), iter(zip(batch.image, batch.metadata, strict=True))
    for place, row in enumerate(rows):
        if place in bad:
            assert same(bad[place], dataset.read(row))
        else:
            image, known = next(images)
            assert same(Example(known.key, image, known.label, known.text, known.factors), dataset.read(row))
    labels = [-1 if known.label is None else known.label for known in batch.metadata]
    assert (batch.label is None and dataset.classes is None) or batch.label.tolist() == labels


def test_an_empty_batch_is_empty(recipe):
    batch, wanted = open_images(recipe, "train").read_batch([]), recipe.preprocess
    assert batch.metadata == [] and batch.image.shape == (0, wanted.channels, wanted.size, wanted.size)


def test_opened_again_it_is_the_same(recipe):
    first, second = open_images(recipe, "train"), open_images(recipe, "train")
    assert all(same(first.read(i), second.read(i)) for i in range(len(first)))


def test_contents_are_plain_and_the_same_when_opened_again(recipe):
    first, second = open_images(recipe, "train"), open_images(recipe, "train")
    contents = first._source.contents(range(len(first._source)))
    assert contents is None or len(contents) == len(first._source)
    json.dumps([content.columns for content in contents or []])
    assert first.content_digest() == second.content_digest()


def test_pictures_are_the_same_in_every_thread(recipe):
    dataset, rows = readable(recipe)
    expected, wrong = {i: dataset.read(i) for i in rows}, []
    random_state = torch.get_rng_state()

    def read() -> None:
        wrong.extend(i for _ in range(5) for i in rows if not same(dataset.read(i), expected[i]))

    threads = [threading.Thread(target=read) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
    assert torch.equal(torch.get_rng_state(), random_state)


def test_readers_raise_decode_errors_only(recipe):
    source = open_images(recipe, "train")._source
    for reader in source.readers(range(len(source))):
        with contextlib.suppress(*DECODE_ERRORS):
            reader()


def test_keys_are_unique_and_splits_do_not_overlap(recipe):
    keys = [dataset.key(i) for split in SPLITS for dataset in [open_images(recipe, split)] for i in range(len(dataset))]
    assert len(set(keys)) == len(keys)


def test_keys_and_provenance_name_no_folder_of_this_machine(recipe):
    dataset = open_images(recipe, "train")
    assert not any(os.path.isabs(dataset.key(i)) for i in range(len(dataset)))


def test_classes_are_those_of_all_splits(recipe):
    assert len({json.dumps(open_images(recipe, split).classes) for split in SPLITS}) == 1


def test_provenance_is_plain_json(recipe):
    dataset = open_images(recipe, "validation")
    assert json.loads(json.dumps(dataset.provenance)) == dataset.provenance
    assert dataset.provenance["rows"] == len(dataset)


def test_a_row_outside_raises(recipe):
    dataset = open_images(recipe, "test")
    for row in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset.read(row)
        with pytest.raises(IndexError):
            dataset.read_batch([0, row])


def test_a_copy_in_another_process_reads_the_same(recipe):
    dataset, rows = readable(recipe)
    dataset.read_batch(range(len(dataset)))
    source = dataset._source
    assert len(source) >= len(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.read_batch(rows).image, dataset.read_batch(rows).image)


@pytest.mark.filterwarnings("ignore:skipped an unreadable")
def test_training_batches_are_whole(recipe):
    dataset = open_images(recipe, "train")
    for batch in training_loader(dataset, seed=0, batch_size=8, steps=5):
        assert len(batch["image"]) == 8
        assert ("label" in batch) == (dataset.classes is not None)
        assert "label" not in batch or -1 <= batch["label"].min() <= batch["label"].max() < len(dataset.classes)


def test_the_recipe_survives_json(recipe):
    assert DataConfig.model_validate_json(recipe.model_dump_json()) == recipe


def test_the_schema_can_be_exported():
    assert "source" in TypeAdapter(DataConfig).json_schema()["properties"]
