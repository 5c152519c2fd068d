"""Which splits there are, and when their images need no decoding."""

import pytest

from pipelines.base.errors import UserError
from pipelines.data import SPLITS, open_images
from tests.pipelines.data.conftest import config


@pytest.mark.parametrize("name", ["shapes", "fashion"])
def test_arrays_of_finished_pixels_need_no_decoding(example, name):
    assert not open_images(example(name), "test").needs_decoding


def test_other_preprocessing_needs_decoding(example):
    assert open_images(example("fashion resized"), "train").needs_decoding


def test_carved_splits_do_not_depend_on_which_is_opened(fashion):
    """FashionMNIST has a test split, so validation alone is taken from training."""
    source = {"kind": "torchvision", "name": "FashionMNIST", "root": str(fashion), "download": False}
    recipe = config(source, "L", 28, validation_fraction=0.25)
    assert [len(open_images(recipe, split)) for split in SPLITS] == [30, 10, 12]


def test_a_split_that_is_not_wanted(fashion):
    source = {"kind": "torchvision", "name": "FashionMNIST", "root": str(fashion), "download": False}
    recipe = config(source, "L", 28, validation_fraction=0)
    assert len(open_images(recipe, "train")) == 40
    with pytest.raises(UserError, match="no validation split"):
        open_images(recipe, "validation")
