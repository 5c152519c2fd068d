"""Label accuracy counts the samples that show their label, whatever checks them."""

from dataclasses import replace

import pytest
import torch

from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_images
from pipelines.data import open_images
from pipelines.evaluate import label_accuracy as labels_module
from pipelines.evaluate.label_accuracy import checks_itself, label_accuracy
from pipelines.evaluate.samples import Samples


@pytest.fixture(scope="module")
def data(make_data):
    return make_data(train=8, validation=8, test=40)


@pytest.fixture(scope="module")
def grey(data):
    return data.model_copy(update={"preprocess": data.preprocess.model_copy(update={"mode": "L"})})


def written(folder, images):
    files = [folder / f"{row}.png" for row in range(len(images))]
    save_images(files, images)
    return files


@pytest.fixture(scope="module")
def real(data, tmp_path_factory):
    """Images and true labels of the test split, as if they had been sampled."""
    images, folder = open_images(data, "test"), tmp_path_factory.mktemp("real")
    batch = images.read_batch(range(40))
    return Samples(folder, written(folder, batch.image), batch.label.tolist(), images.classes, [0.0] * 40)


def test_real_scenes_with_their_own_labels_show_them_all(real, data):
    found = label_accuracy(real, data)
    assert (found.checker, found.accuracy, found.real_accuracy) == ("shapes checker", 1.0, 1.0)
    assert (found.images, found.real_images) == (40, 40)
    assert set(found.by_class.values()) == {1.0}


def test_wrong_labels_are_counted_by_class(real, data):
    classes = real.classes
    wrong = [(label + 1) % len(classes) if row < 10 else label for row, label in enumerate(real.labels)]
    found = label_accuracy(replace(real, labels=wrong), data)
    assert found.accuracy == pytest.approx(30 / 40)
    counts = torch.bincount(torch.tensor(wrong), minlength=len(classes))
    weighted = sum(share * int(counts[classes.index(name)]) for name, share in found.by_class.items())
    assert weighted == pytest.approx(30)


def test_noise_shows_nothing(real, data, tmp_path):
    noise = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert label_accuracy(replace(real, files=written(tmp_path, noise)), data).accuracy == 0


def test_a_process_reads_its_share_of_the_samples_block_by_block(real, data, monkeypatch):
    read, read_images = [], Samples.read_images
    monkeypatch.setattr(Samples, "read_images", lambda self, rows: read.append(rows) or read_images(self, rows))
    monkeypatch.setattr(labels_module, "IMAGES_AT_ONCE", 8)
    monkeypatch.setattr(labels_module, "gather", lambda values, processes: values + values)
    label_accuracy(real, data, max_images=4, accelerator=SecondOfTwo())
    assert read == [range(20, 28), range(28, 36), range(36, 40)]


def test_a_damaged_image_is_named(real, data, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes(real.files[0].read_bytes()[:50])
    with pytest.raises(UserError, match=str(real.folder)):
        label_accuracy(replace(real, files=[torn, *real.files[1:]]), data)


class SecondOfTwo:
    device, num_processes, process_index, is_main_process = torch.device("cpu"), 2, 1, False


class AlwaysFirst:
    folder = "somewhere"

    def __init__(self, classes, preprocess):
        self.classes, self.preprocess = tuple(classes), preprocess

    def __call__(self, images):
        return torch.zeros(len(images), dtype=torch.long)


@pytest.mark.parametrize("at_once", [7, 500])
def test_grey_shapes_are_checked_by_the_classifier_and_real_images_are_the_ceiling(
    real, data, grey, monkeypatch, at_once
):
    assert checks_itself(data) and not checks_itself(grey)  # a colour cannot be read from a grey image
    monkeypatch.setattr(labels_module, "IMAGES_AT_ONCE", at_once)
    monkeypatch.setattr(labels_module, "load_classifier", lambda *_: AlwaysFirst(real.classes, grey.preprocess))
    found = label_accuracy(replace(real, labels=[0] * 40), grey, classifier="somewhere", max_images=20)
    assert (found.checker, found.accuracy, found.real_images) == ("classifier", 1.0, 20)
    assert found.real_accuracy == pytest.approx(sum(label == 0 for label in real.labels[:20]) / 20)


def test_a_classifier_that_does_not_fit_is_refused(real, data, grey, monkeypatch):
    monkeypatch.setattr(labels_module, "load_classifier", lambda *_: AlwaysFirst(real.classes, data.preprocess))
    with pytest.raises(UserError, match=r"trained on the classes 24: .* the samples have 1: boot"):
        label_accuracy(replace(real, classes=["boot"]), grey, classifier="somewhere")
    with pytest.raises(UserError, match="trained on images of 32 x 32 RGB; the samples are of 32 x 32 L"):
        label_accuracy(real, grey, classifier="somewhere")


def test_a_classifier_is_given_where_pixels_do_not_tell_and_nowhere_else(real, data, grey):
    with pytest.raises(UserError, match="found none, expected the run of a classifier"):
        label_accuracy(real, grey)
    with pytest.raises(UserError, match="found somewhere, expected none"):
        label_accuracy(real, data, classifier="somewhere")


def test_samples_without_labels_are_refused(real, data):
    with pytest.raises(UserError, match="expected class-conditional"):
        label_accuracy(replace(real, labels=[-1] * 40), data)
