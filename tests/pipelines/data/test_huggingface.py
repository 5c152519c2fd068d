"""What is particular to Hugging Face. What holds for all sources stands in test_source_contract.py."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.data import SPLITS, DataConfig, Example, Unreadable, open_images
from tests.pipelines.conftest import read_example
from tests.pipelines.data.conftest import WHOLE, config, noise_image, png, write_table


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


def write_captioned_folder(folder: Path, captions: list[bytes | None], extension: str = ".txt") -> DataConfig:
    for number, content in enumerate(captions):
        noise_image(number).save(folder / f"{number}.png")
        if content is not None:
            (folder / f"{number}{extension}").write_bytes(content)
    source = {"kind": "huggingface", "path": "imagefolder", "data_dir": str(folder), "caption_extension": extension}
    return config(source, **WHOLE)


@pytest.mark.parametrize("extension", [".txt", ".caption"])
def test_captions_in_files_beside_the_images(tmp_path, extension):
    captions = [b"a cat", None, b" two\n  lines \n", b"", "ein grüner Kreis".encode()]
    dataset = open_images(write_captioned_folder(tmp_path, captions, extension), "train")
    assert dataset.has_text
    found = {row.key: row.text for row in dataset.read_batch(range(5)).metadata}
    expected = ["a cat", None, "two lines", None, "ein grüner Kreis"]
    assert found == {f"{number}.png": text for number, text in enumerate(expected)}
    before = dataset.content_digest()
    (tmp_path / f"0{extension}").write_text("another cat")
    assert dataset.content_digest() != before


@pytest.mark.parametrize(("content", "words"), [(b"\xff\xfe", "is not UTF-8"), (b"x" * 2**17, "larger than 65,536")])
def test_a_file_that_is_no_caption_is_named(tmp_path, content, words):
    dataset = open_images(write_captioned_folder(tmp_path, [b"a cat", content]), "train")
    with pytest.raises(UserError, match=rf"1\.txt: .*{words}"):
        dataset.read_batch(range(2))


@pytest.mark.parametrize("wrong", [{"caption_extension": "txt"}, {"caption_extension": ".txt", "text": "caption"}])
def test_captions_have_one_place_that_is_named_as_an_extension(wrong):
    with pytest.raises(ValueError, match="caption_extension"):
        config({"kind": "huggingface", "path": "imagefolder", **wrong})


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
