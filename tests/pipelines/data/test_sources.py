"""One contract for every source, and what is particular to each."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from pipelines.base.errors import UserError
from pipelines.data import DataConfig, Example, Unreadable, open_images
from pipelines.data.torchvision import InMemory


def config(source: dict, mode: str = "RGB", size: int = 32, **fields) -> DataConfig:
    return DataConfig.model_validate({"source": source, "preprocess": {"mode": mode, "size": size}, **fields})


@pytest.fixture(scope="session")
def recipes(fashion, parquet, folder) -> dict[str, DataConfig]:
    named = {"kind": "torchvision", "name": "FashionMNIST", "root": str(fashion), "download": False}
    fake = {"kind": "torchvision", "name": "FakeData", "arguments": {"size": 20, "image_size": [3, 40, 30]}}
    table = {"kind": "huggingface", "path": "parquet", "data_files": str(parquet)}
    columns = {"key": "key", "label": "category", "text": "text"}
    carved = {"validation_fraction": 0.2, "test_fraction": 0.2}
    return {
        "shapes": config({"kind": "shapes", "train": 30, "validation": 9, "test": 8}),
        "fashion": config(named, "L", 28, **carved),
        "fashion resized": config(named, "RGB", 32, **carved),
        "fake": config(fake, **carved),
        "parquet": config({**table, **columns}, **carved),
        "folder": config({"kind": "huggingface", "path": str(folder), "text": "text"}, **carved),
    }


NAMES = ["shapes", "fashion", "fashion resized", "fake", "parquet", "folder"]
SPLITS = ["train", "validation", "test"]


@pytest.fixture(params=NAMES)
def recipe(request, recipes) -> DataConfig:
    return recipes[request.param]


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
            assert (found.label is None) == (dataset.classes is None)
            assert found.label is None or 0 <= found.label < len(dataset.classes)
        else:
            assert found.reason


def same(a: Example | Unreadable, b: Example | Unreadable) -> bool:
    if isinstance(a, Unreadable) or isinstance(b, Unreadable):
        return a == b
    facts = [(e.key, e.label, e.text, e.factors) for e in (a, b)]
    return facts[0] == facts[1] and torch.equal(a.image, b.image)


def test_reading_twice_or_together_is_the_same(recipe):
    dataset = open_images(recipe, "train")
    together = dataset.read_batch(range(len(dataset)))
    again = open_images(recipe, "train")
    bad = dict(together.unreadable)
    known = iter(zip(together.image, together.metadata, strict=True))
    for i in range(len(dataset)):
        if i in bad:
            assert same(bad[i], again.read(i))
        else:
            image, row = next(known)
            assert same(Example(row.key, image, row.label, row.text, row.factors), again.read(i))


def test_a_batch_holds_the_readable_rows(recipe):
    dataset = open_images(recipe, "train")
    rows = torch.arange(len(dataset)).flip(0)
    batch = dataset.read_batch(rows)
    found = [dataset.read(i) for i in rows.tolist()]
    readable = [e for e in found if isinstance(e, Example)]
    assert torch.equal(batch.image, torch.stack([e.image for e in readable]))
    assert (batch.label is None and dataset.classes is None) or batch.label.tolist() == [e.label for e in readable]
    assert batch.unreadable == [(i, e) for i, e in enumerate(found) if isinstance(e, Unreadable)]


def test_keys_are_unique_and_splits_do_not_overlap(recipe):
    keys = [dataset.key(i) for split in SPLITS for dataset in [open_images(recipe, split)] for i in range(len(dataset))]
    assert len(set(keys)) == len(keys)


def test_classes_are_those_of_all_splits(recipe):
    assert len({json.dumps(open_images(recipe, split).classes) for split in SPLITS}) == 1


def test_provenance_is_plain_json(recipe):
    source = open_images(recipe, "validation").provenance
    assert json.loads(json.dumps(source)) == source
    assert source["rows"] == len(open_images(recipe, "validation"))


def test_a_row_outside_raises(recipe):
    dataset = open_images(recipe, "test")
    for row in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset.read(row)


def test_the_recipe_survives_json(recipe):
    assert DataConfig.model_validate_json(recipe.model_dump_json()) == recipe


def test_the_schema_can_be_exported():
    assert "source" in TypeAdapter(DataConfig).json_schema()["properties"]


@pytest.mark.parametrize("name", ["shapes", "fashion"])
def test_the_fast_path_equals_the_slow_one(recipes, name):
    recipe = recipes[name]
    dataset = open_images(recipe, "test")
    assert not dataset.needs_decoding
    for i in range(len(dataset)):
        assert torch.equal(dataset.read_batch([i]).image[0], dataset.read(i).image)


def test_other_preprocessing_leaves_the_fast_path(recipes):
    assert open_images(recipes["fashion resized"], "train").needs_decoding


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
        f"{name}/large.png: the picture has 900 pixels, max_pixels is 100" for name in ("cat", "dog")
    ]


def test_what_is_no_image_is_refused_at_the_start():
    from pipelines.data.torchvision import Torchvision, TorchvisionConfig

    films = [(torch.zeros(8, 3, 4, 4), 0)]
    with pytest.raises(UserError, match="gives Tensor, not images"):
        Torchvision(films, TorchvisionConfig(name="Films"), "train")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_arrays_in_memory_are_recognised_by_what_they_show(layout):
    """Three rows high and three channels: only looking at the items tells the layouts apart."""
    from pipelines.data.torchvision import Torchvision, TorchvisionConfig

    class Held:
        data = np.random.default_rng(0).integers(0, 256, (6, 3, 3, 3), np.uint8)
        targets = (0, 1, 2, 0, 1, 2)

        def __len__(self):
            return 6

        def __getitem__(self, i):
            pixels = self.data[i] if layout == "nhwc" else self.data[i].transpose(1, 2, 0)
            return Image.fromarray(np.ascontiguousarray(pixels)), self.targets[i]

    source = Torchvision(Held(), TorchvisionConfig(name="Held"), "train")
    expected = Held.data if layout == "nchw" else Held.data.transpose(0, 3, 1, 2)
    assert isinstance(source.array, InMemory)
    assert torch.equal(source.array.images, torch.from_numpy(expected.copy()))


# ---- Hugging Face


def test_parquet_columns_and_classes(recipes, parquet):
    dataset = open_images(recipes["parquet"], "train")
    assert dataset.classes == ["Animals", "Flags", "Symbols"]
    for found in map(dataset.read, range(len(dataset))):
        number = int(found.key.removeprefix("emoji-"))
        if isinstance(found, Example):
            assert found.text == f"picture number {number}"
            assert dataset.classes[found.label] == ("Symbols", "Animals", "Flags")[number % 3]


def test_broken_rows_of_parquet_are_named(recipes):
    datasets = [open_images(recipes["parquet"], split) for split in SPLITS]
    bad = {e.key: e.reason for d in datasets for e in map(d.read, range(len(d))) if isinstance(e, Unreadable)}
    assert bad.keys() == {"emoji-4", "emoji-9", "emoji-17"}
    assert "1,200,000,000 pixels, max_pixels is 50,000,000" in bad["emoji-17"]


def test_a_folder_with_captions(recipes):
    recipe = recipes["folder"]
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
    assert test.classes is None and test.read(0).label is None


# ---- unreadable pictures


def test_refusing_names_the_unreadable(parquet, capfd):
    source = {"kind": "huggingface", "path": "parquet", "data_files": str(parquet), "key": "key"}
    recipe = config(source, on_unreadable="refuse", validation_fraction=0, test_fraction=0)
    with pytest.raises(
        UserError, match=r"3 of 30 images cannot be read(.|\n)*emoji-4: (.|\n)*emoji-9: (.|\n)*emoji-17: "
    ):
        open_images(recipe, "train")


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
