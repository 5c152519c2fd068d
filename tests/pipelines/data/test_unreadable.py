"""Images that cannot be read are named, skipped or refused."""

import pytest
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.data import SPLITS, open_images
from tests.pipelines.data.conftest import config, write_table


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_without_a_readable_image_is_one_message(tmp_path, split):
    images = [b"broken"] * 3
    files = {name: write_table(tmp_path / f"{name}.parquet", image=images)["data_files"] for name in SPLITS}
    with pytest.raises(UserError, match=r"none of the 3 images can be read; the first: "):
        open_images(config({"kind": "huggingface", "path": "parquet", "data_files": files}), split)


def test_the_pixel_limit_of_pil_is_raised_but_never_lowered(tmp_path, monkeypatch):
    from pipelines.data.image_files import open_image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.new("L", (20, 20)).save(tmp_path / "large.png")
    assert open_image(tmp_path / "large.png", 400).size == (20, 20)


def test_refusing_names_the_unreadable(parquet, capfd):
    source = {"kind": "huggingface", "path": "parquet", "data_files": str(parquet), "key": "key"}
    recipe = config(source, on_unreadable="refuse", validation_fraction=0, test_fraction=0)
    with pytest.raises(
        UserError, match=r"3 of 30 images cannot be read(.|\n)*emoji-4: (.|\n)*emoji-9: (.|\n)*emoji-17: "
    ):
        open_images(recipe, "train")


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_the_first_process_alone_shows_that_images_are_checked(folder, capfd, monkeypatch, rank, shown):
    monkeypatch.setenv("RANK", rank)
    recipe = config({"kind": "huggingface", "path": str(folder)}, on_unreadable="refuse")
    with pytest.raises(UserError, match="cannot be read"):
        open_images(recipe, "train")
    assert ("checking images" in capfd.readouterr().err) == shown


def test_refusing_accepts_what_is_whole(fashion, capfd):
    source = {"kind": "torchvision", "name": "FashionMNIST", "root": str(fashion), "download": False}
    assert len(open_images(config(source, on_unreadable="refuse", validation_fraction=0), "train")) == 40


def test_the_pixel_limit_is_exact(tmp_path):
    from pipelines.data.image_files import TooLarge, open_image

    Image.new("L", (10, 10)).save(tmp_path / "ten.png")
    before = Image.MAX_IMAGE_PIXELS
    assert open_image(tmp_path / "ten.png", 100).size == (10, 10)
    with pytest.raises(TooLarge, match="100 pixels, max_pixels is 99"):
        open_image(tmp_path / "ten.png", 99)
    assert before == Image.MAX_IMAGE_PIXELS
