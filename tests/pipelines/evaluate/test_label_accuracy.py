"""Laws of label accuracy: truth is obeyed, lies are found, whoever judges."""

import pytest
import torch

from pipelines.base.errors import UserError
from pipelines.data import open_images
from pipelines.evaluate import label_accuracy as labels_module
from pipelines.evaluate.label_accuracy import label_accuracy


@pytest.fixture(scope="module")
def data(make_data):
    return make_data(train=8, validation=8, test=40)


@pytest.fixture(scope="module")
def real(data):
    """Images, true labels and class names of the test split."""
    images = open_images(data, "test")
    batch = images.read_batch(range(40))
    return batch.image, batch.label.tolist(), images.classes


def test_real_scenes_with_their_own_labels_obey_them_all(real, data):
    found = label_accuracy(*real, data)
    assert (found.judge, found.accuracy, found.real_accuracy) == ("shapes checker", 1.0, 1.0)
    assert (found.images, found.real_images) == (40, 40)
    assert set(found.by_class.values()) == {1.0}


def test_wrong_labels_are_counted_by_class(real, data):
    images, labels, classes = real
    lied = [(label + 1) % len(classes) if row < 10 else label for row, label in enumerate(labels)]
    found = label_accuracy(images, lied, classes, data)
    assert found.accuracy == pytest.approx(30 / 40)
    counts = torch.bincount(torch.tensor(lied), minlength=len(classes))
    weighted = sum(share * int(counts[classes.index(name)]) for name, share in found.by_class.items())
    assert weighted == pytest.approx(30)


def test_noise_obeys_nothing(real, data):
    images, labels, classes = real
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert label_accuracy(noise, labels, classes, data).accuracy == 0


def test_other_data_is_judged_by_the_classifier_and_real_images_are_the_ceiling(real, data, monkeypatch):
    images, labels, classes = real

    class AlwaysFirst:
        folder = "somewhere"

        def __call__(self, images):
            return torch.zeros(len(images), dtype=torch.long)

    AlwaysFirst.classes = tuple(classes)
    monkeypatch.setattr(labels_module, "ShapesConfig", type(None))
    monkeypatch.setattr(labels_module, "load_classifier", lambda folder: AlwaysFirst())
    found = label_accuracy(images, [0] * 40, classes, data, classifier="somewhere", limit=20)
    assert (found.judge, found.accuracy) == ("classifier", 1.0)
    assert found.real_accuracy == pytest.approx(sum(label == 0 for label in labels[:20]) / 20)
    with pytest.raises(UserError, match="the samples have"):
        label_accuracy(images, labels, ["boot"], data, classifier="somewhere")
    with pytest.raises(UserError, match="need a classifier"):
        label_accuracy(images, labels, classes, data)


def test_samples_without_labels_are_refused(real, data):
    images, _, classes = real
    with pytest.raises(UserError, match="expected class-conditional"):
        label_accuracy(images, [-1] * 40, classes, data)
