"""Rows without a label are images; the labelled ones can be had alone."""

import pytest
import torch

from pipelines.base.errors import UserError
from pipelines.data import open_images
from tests.pipelines.data.conftest import WHOLE, config, noise_image, png, write_table


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_a_row_without_a_label_is_an_image(tmp_path, cache_bytes):
    source = write_table(tmp_path / "t.parquet", image=[png(noise_image(i)) for i in range(3)], label=["a", None, "b"])
    dataset = open_images(config({**source, "label": "label"}, cache_bytes=cache_bytes, **WHOLE), "train")
    for _ in range(2):
        batch = dataset.read_batch(range(3))
        assert batch.label.tolist() == [0, -1, 1] and not batch.unreadable
        assert [row.label for row in batch.metadata] == [0, None, 1]


def test_the_labelled_rows_can_be_had_alone(tmp_path):
    source = write_table(tmp_path / "t.parquet", image=[png(noise_image(i)) for i in range(3)], label=["a", None, "b"])
    dataset = open_images(config({**source, "label": "label"}, **WHOLE), "train")
    labelled = dataset.labelled()
    assert labelled.read_batch(range(2)).label.tolist() == [0, 1] and len(labelled) == 2
    assert torch.equal(labelled.read_batch([1]).image, dataset.read_batch([2]).image)
    assert labelled.labelled() is labelled and len(dataset) == dataset.provenance["rows"] == 3


def test_no_labelled_row_is_one_message(tmp_path):
    source = write_table(tmp_path / "t.parquet", image=[png(noise_image(i)) for i in range(3)])
    with pytest.raises(UserError, match=r"none of the 3 images of .* has a label"):
        open_images(config(source, **WHOLE), "train").labelled()
