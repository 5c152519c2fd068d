"""What is particular to torchvision. What holds for all sources stands in test_source_contract.py."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.data import Example, ImageDataset, Preprocess, Unreadable, open_images
from pipelines.data.torchvision import InMemory, Torchvision, TorchvisionConfig
from tests.pipelines.data.conftest import WHOLE, config, noise_image


def test_fake_data_is_torchvisions_own():
    from torchvision.datasets import FakeData

    arguments = {"size": 6, "image_size": [3, 8, 9], "num_classes": 4, "random_offset": 2}
    source = {"kind": "torchvision", "name": "FakeData", "arguments": arguments}
    dataset = open_images(config(source, size=8, crop="none", **WHOLE), "train")._source
    expected = FakeData(**arguments)
    for row, (reader, known) in enumerate(zip(dataset.readers(range(6)), dataset.metadata(range(6)), strict=True)):
        image, label = expected[row]
        assert known.label == label
        assert np.array_equal(np.asarray(reader()), np.asarray(image))


@pytest.mark.parametrize("size", [-5, "many", 1e400])
def test_a_size_that_is_none_is_one_message(size):
    source = {"kind": "torchvision", "name": "FakeData", "arguments": {"size": size}}
    with pytest.raises(UserError, match="FakeData"):
        open_images(config(source), "train")


def test_missing_raw_files_are_named(tmp_path):
    source = {"kind": "torchvision", "name": "FashionMNIST", "root": str(tmp_path), "download": False}
    with pytest.raises(
        UserError, match=r"FashionMNIST/raw, expected train-images-idx3-ubyte, .*t10k-labels-idx1-ubyte"
    ):
        open_images(config(source, "L", 28), "train")


def test_a_failed_download_is_one_message(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", unreachable)
    source = {"kind": "torchvision", "name": "MNIST", "root": str(tmp_path)}
    with pytest.raises(UserError, match=r"could not be downloaded.*no route to host.*MNIST/raw"):
        open_images(config(source, "L", 28), "train")


def test_who_waited_for_a_download_finds_the_files(tmp_path):
    from pipelines.data.torchvision import _download

    calls = []

    def family(download):
        calls.append(download)
        return "data"

    assert _download(family, {}, tmp_path / "root") == "data"
    assert calls == [False]


def test_an_unknown_torchvision_name_lists_the_known():
    with pytest.raises(UserError, match=r"no data set 'FashionMnist'; it has .*FashionMNIST"):
        open_images(config({"kind": "torchvision", "name": "FashionMnist"}), "train")


def test_unknown_arguments_are_refused(fashion):
    source = {"kind": "torchvision", "name": "FashionMNIST", "root": str(fashion), "arguments": {"colour": True}}
    with pytest.raises(UserError, match="colour"):
        open_images(config(source), "train")


def test_an_image_folder_of_torchvision(tmp_path):
    """Its own loader would drop transparency and decode pictures of any size."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / name / "clear.png")
        Image.new("RGB", (30, 30)).save(tmp_path / name / "large.png")
    source = {"kind": "torchvision", "name": "ImageFolder", "root": str(tmp_path)}
    fields = {"validation_fraction": 0, "test_fraction": 0, "max_pixels": 100}
    dataset = open_images(config(source, size=8, **fields), "train")
    assert dataset.classes == ["cat", "dog"]
    found = [dataset.read(i) for i in range(4)]
    assert [(e.key, e.label) for e in found if isinstance(e, Example)] == [("cat/clear.png", 0), ("dog/clear.png", 1)]
    assert all((e.image == 255).all() for e in found if isinstance(e, Example))
    assert [str(e) for e in found if isinstance(e, Unreadable)] == [
        f"{name}/large.png: the image has 900 pixels, max_pixels is 100" for name in ("cat", "dog")
    ]


def test_what_is_no_image_is_refused_at_the_start():
    films = [(torch.zeros(8, 3, 4, 4), 0)]
    with pytest.raises(UserError, match="gives Tensor, not images"):
        Torchvision(films, TorchvisionConfig(name="Films"), "train")


@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_arrays_in_memory_are_recognised_by_what_they_show(layout, unlabelled):
    """Three rows high and three channels: only looking at the items tells the layouts apart."""

    class Held:
        data = np.random.default_rng(0).integers(0, 256, (6, 3, 3, 3), np.uint8)
        targets = (0, -1, 2, 0, -1, 2) if unlabelled else (0, 1, 2, 0, 1, 2)

        def __len__(self):
            return 6

        def __getitem__(self, i):
            pixels = self.data[i] if layout == "nhwc" else self.data[i].transpose(1, 2, 0)
            return Image.fromarray(np.ascontiguousarray(pixels)), self.targets[i]

    source = Torchvision(Held(), TorchvisionConfig(name="Held"), "train")
    expected = Held.data if layout == "nchw" else Held.data.transpose(0, 3, 1, 2)
    assert isinstance(source.array, InMemory)
    assert torch.equal(source.array.images, torch.from_numpy(expected.copy()))


class Unlisted:
    """Pictures whose targets stand in the items alone, and how often an item was asked for."""

    classes: Sequence[str] = ("even", "odd")

    def __init__(self, length=20, broken=(), **listed):
        self.length, self.broken, self.asked = length, broken, []
        self.__dict__.update(listed)

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        self.asked.append(i)
        if i in self.broken:
            raise OSError("broken")
        return noise_image(i), i % 2


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_an_item_that_tells_the_label_is_read_once(cache_bytes):
    data = Unlisted(broken=(3,))
    source = Torchvision(data, TorchvisionConfig(name="Unlisted"), "train")
    data.asked.clear()
    batch = ImageDataset(source, Preprocess(size=8), cache_bytes=cache_bytes).read_batch(range(20))
    assert sorted(data.asked) == list(range(20))
    assert [place for place, _ in batch.unreadable] == [3]
    expected = [row % 2 for row in range(20) if row != 3]
    assert batch.label.tolist() == [row.label for row in batch.metadata] == expected


def test_labels_that_a_cache_holds_are_not_read_again():
    first, second = (Torchvision(Unlisted(), TorchvisionConfig(name="Unlisted"), "train") for _ in range(2))
    filled, empty = (ImageDataset(source, Preprocess(size=8), cache_bytes=2**20) for source in (first, second))
    filled.read_pixels(range(20))
    empty._cache = filled._cache  # as of another process, in a file
    second.data.asked.clear()
    assert [row.label for row in empty.read_batch(range(20)).metadata] == [row % 2 for row in range(20)]
    assert not second.data.asked


@pytest.mark.parametrize("name", ["targets", "y", "_samples"])
def test_listed_targets_need_no_item(name):
    data = Unlisted(**{name: [(f"{i}.png", i % 2) if name == "_samples" else i % 2 for i in range(20)]})
    source = Torchvision(data, TorchvisionConfig(name="Listed"), "train")
    data.asked.clear()
    assert source.labels(range(20)).tolist() == [i % 2 for i in range(20)]
    assert not data.asked


@pytest.mark.parametrize("targets", [[-1] * 20, [-1, 0] * 10])
def test_pictures_of_which_none_has_a_label_have_no_classes(targets):
    data = Unlisted(labels=targets)
    source = Torchvision(data, TorchvisionConfig(name="Unlabelled"), "train")
    batch = ImageDataset(source, Preprocess(size=8)).read_batch(range(20))
    withheld = max(targets) < 0
    assert (source.classes is None) == (batch.label is None) == withheld
    assert [row.label for row in batch.metadata] == [None if label < 0 else label for label in targets]
