"""What is particular to each source. What holds for all of them stands in test_source_contract.py."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.data import SPLITS, DataConfig, Example, ImageDataset, Preprocess, Unreadable, open_images
from pipelines.data.torchvision import InMemory, Torchvision, TorchvisionConfig
from tests.pipelines.conftest import read_example
from tests.pipelines.data.conftest import noise_image, png


def config(source: dict, mode: str = "RGB", size: int = 32, crop: str = "center", **fields) -> DataConfig:
    preprocess = {"mode": mode, "size": size, "crop": crop}
    return DataConfig.model_validate({"source": source, "preprocess": preprocess, **fields})


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


# ---- torchvision


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


# ---- Hugging Face


def test_parquet_columns_and_classes(example):
    dataset = open_images(example("parquet"), "train")
    assert dataset.classes == ["Animals", "Flags", "Symbols"]
    for found in map(dataset.read, range(len(dataset))):
        number = int(found.key.removeprefix("emoji-"))
        if isinstance(found, Example):
            assert found.text == f"picture number {number}"
            assert found.label is not None
            assert dataset.classes[found.label] == ("Symbols", "Animals", "Flags")[number % 3]


def test_broken_rows_of_parquet_are_named(example):
    datasets = [open_images(example("parquet"), split) for split in SPLITS]
    bad = {e.key: e.reason for d in datasets for e in map(d.read, range(len(d))) if isinstance(e, Unreadable)}
    assert bad.keys() == {"emoji-4", "emoji-9", "emoji-17"}
    assert "1,200,000,000 pixels, max_pixels is 50,000,000" in bad["emoji-17"]


def test_a_folder_with_captions(example):
    recipe = example("folder")
    found = [
        dataset.read(i) for split in SPLITS for dataset in [open_images(recipe, split)] for i in range(len(dataset))
    ]
    texts = {e.key: e.text for e in found if isinstance(e, Example)}
    assert texts.pop("test/04.png") == "test picture 4"
    assert len(texts) == 15
    assert [e.key for e in found if isinstance(e, Unreadable)] == ["train/03.png"]


def test_an_unknown_column_lists_the_known(parquet):
    source = {"kind": "huggingface", "path": "parquet", "data_files": str(parquet), "label": "kategory"}
    with pytest.raises(UserError, match=r"no column 'kategory'; it has key, image, text, category"):
        open_images(config(source), "train")


def test_a_column_that_holds_no_images_is_refused(parquet, tmp_path):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    write_table(pa.table({"image": [1.5, 2.5]}), tmp_path / "numbers.parquet")
    source = {"kind": "huggingface", "path": "parquet", "data_files": str(tmp_path / "numbers.parquet")}
    with pytest.raises(UserError, match="column 'image' holds no images"):
        open_images(config(source), "train")


@pytest.mark.parametrize("source", [{"path": "./nowhere"}, {"path": "parquet", "data_files": "nowhere.parquet"}])
def test_missing_local_data_is_named(source):
    with pytest.raises(UserError, match="nowhere"):
        open_images(config({"kind": "huggingface", **source}), "train")


def test_an_unknown_split_lists_the_known(parquet):
    source = {"kind": "huggingface", "path": "parquet", "data_files": str(parquet), "splits": {"test": "exam"}}
    with pytest.raises(UserError, match="no split 'exam'; it has train"):
        open_images(config(source), "test")


def test_splits_may_have_other_names(parquet):
    files = {"learn": str(parquet), "exam": str(parquet)}
    source = {
        "kind": "huggingface",
        "path": "parquet",
        "data_files": files,
        "splits": {"train": "learn", "test": "exam"},
    }
    recipe = config(source, validation_fraction=0.1)
    assert [len(open_images(recipe, split)) for split in SPLITS] == [27, 3, 30]


def test_a_test_split_with_withheld_labels_has_no_classes(tmp_path):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    Image.new("L", (4, 4)).save(tmp_path / "dark.png")
    files, dark = {}, {"bytes": (tmp_path / "dark.png").read_bytes(), "path": None}
    for split, labels in (("train", [5, 7, 5, 7]), ("test", [None, None])):
        write_table(
            pa.table({"image": [dark] * len(labels), "label": pa.array(labels, pa.int64())}),
            tmp_path / f"{split}.parquet",
        )
        files[split] = str(tmp_path / f"{split}.parquet")
    source = {"kind": "huggingface", "path": "parquet", "data_files": files, "label": "label"}
    recipe = config(source, validation_fraction=0)
    train, test = open_images(recipe, "train"), open_images(recipe, "test")
    assert train.classes == ["5", "7"]
    assert train.read_batch(torch.arange(4)).label.tolist() == [0, 1, 0, 1]
    assert test.classes is None and read_example(test, 0).label is None


def write_table(path, **columns):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    if isinstance(columns["image"][0], bytes):
        columns["image"] = [{"bytes": content, "path": None} for content in columns["image"]]
    write_table(pa.table(columns), path)
    return {"kind": "huggingface", "path": "parquet", "data_files": str(path)}


WHOLE = {"validation_fraction": 0, "test_fraction": 0}


def test_texts_do_not_depend_on_the_first_row(tmp_path):
    images = [png(noise_image(i)) for i in range(4)]
    source = write_table(tmp_path / "t.parquet", image=images, caption=[None, "a", "b", "c"])
    dataset = open_images(config({**source, "text": "caption"}, **WHOLE), "train")
    assert dataset.has_text
    assert [row.text for row in dataset.read_batch(range(4)).metadata] == [None, "a", "b", "c"]


def test_the_subfolders_of_an_image_folder_are_its_classes(class_folders):
    for source in (
        {"path": "imagefolder", "arguments": {"data_dir": str(class_folders)}},
        {"path": str(class_folders)},
    ):
        dataset = open_images(config({"kind": "huggingface", **source}, **WHOLE), "train")
        batch = dataset.read_batch(range(12))
        assert dataset.classes == ["cat", "dog"]
        labels = [row.label for row in batch.metadata if row.label is not None]
        for row, label in zip(batch.metadata, labels, strict=True):
            assert f"train/{dataset.classes[label]}/" in row.key
        assert {row.key for row in batch.metadata} == {f"train/{('cat', 'dog')[i % 2]}/{i:02d}.png" for i in range(12)}


def test_a_folder_given_on_the_command_line_keeps_its_classes(class_folders, tiny_tokenizer):
    from pipelines.recipes.data_arguments import data_of

    dataset = open_images(data_of(str(class_folders), tiny_tokenizer), "train")
    assert dataset.classes == ["cat", "dog"]
    assert dataset.key(0).startswith("train/cat/")


def test_a_folder_without_classes_has_none(folder):
    assert open_images(config({"kind": "huggingface", "path": str(folder)}), "train").classes is None


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/data/pets/train/cat/1.png", "train/cat/1.png"),
        ("zip://train/cat/1.png::/home/someone/pets.zip", "train/cat/1.png"),
        ("https://someone:secret@host.org/a/1.png?token=abc", "host.org/a/1.png"),
        ("/home/someone/.cache/huggingface/datasets/downloads/extracted/0f1e/cat/1.png", "0f1e/cat/1.png"),
        ("/elsewhere/1.png", None),
    ],
)
def test_keys_are_paths_inside_the_data(path, key):
    from pipelines.data.huggingface import relative_key

    assert relative_key(path, ["/data/pets"]) == key


def test_addresses_in_place_of_images_are_refused(tmp_path):
    source = write_table(tmp_path / "t.parquet", image=[None, "https://someone:secret@host.org/1.png", "x"])
    with pytest.raises(UserError, match=r"column 'image' holds addresses \(host.org\), not images"):
        open_images(config(source), "train")


def test_a_data_set_is_loaded_once(parquet, tmp_path, monkeypatch):
    import datasets

    calls, load = [], datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: (calls.append(a), load(*a, **k))[1])
    copy = tmp_path / "train.parquet"
    copy.write_bytes(parquet.read_bytes())
    recipe = config({"kind": "huggingface", "path": "parquet", "data_files": str(copy)})
    for split in SPLITS:
        open_images(recipe, split)
    assert len(calls) == 1


def test_columns_that_are_not_needed_are_not_decoded(tmp_path):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    columns = {"image": [{"bytes": png(noise_image(i))} for i in range(4)], "thumbnail": [{"bytes": b"broken"}] * 4}
    features = Features({name: ImageFeature() for name in columns})
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "t.parquet")
    source = {"kind": "huggingface", "path": "parquet", "data_files": str(tmp_path / "t.parquet")}
    assert len(open_images(config(source, **WHOLE), "train").read_batch(range(4))) == 4


# ---- unreadable pictures


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_without_a_readable_image_is_one_message(tmp_path, split):
    images = [b"broken"] * 3
    files = {name: write_table(tmp_path / f"{name}.parquet", image=images)["data_files"] for name in SPLITS}
    with pytest.raises(UserError, match=r"none of the 3 images can be read; the first: "):
        open_images(config({"kind": "huggingface", "path": "parquet", "data_files": files}), split)


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
