"""The drawn scenes and the checker that reads them."""

import hashlib
import itertools

import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from pipelines.data.shapes import CLASSES, EXTENTS, MARGIN, Shapes, ShapesConfig, sample_scenes
from pipelines.data.shapes_checker import label_of, obeys_label, read_factors

ROWS = torch.arange(300)


def shapes(size: int = 32, split="train", **fields) -> Shapes:
    return Shapes(ShapesConfig(**fields), split, size)


def test_a_row_is_the_same_in_any_company():
    whole = shapes().pixels(ROWS)
    assert torch.equal(shapes().pixels(ROWS[40:50]), whole[40:50])
    assert torch.equal(shapes().pixels(ROWS[[7]]), whole[[7]])


def test_pictures_keys_and_captions_are_pinned():
    """Measured figures rest on these very pictures."""
    digest = hashlib.sha256()
    for split, size in itertools.product(("train", "validation", "test"), (32, 48)):
        source = shapes(size, split, seed=3)
        digest.update(source.pixels(torch.arange(200)).numpy().tobytes())
        digest.update(repr([(row.key, row.label, row.text) for row in source.metadata(range(200))]).encode())
    assert digest.hexdigest() == "fd6b53342af99322c265075b357df060d3a23015052c2c9e61812207c12f7445"


def test_splits_and_seeds_differ():
    first = shapes().pixels(ROWS)
    assert not torch.equal(first, shapes(split="test").pixels(ROWS))
    assert not torch.equal(first, shapes(seed=1).pixels(ROWS))


def test_both_sizes_show_the_same_scenes():
    assert shapes(32).metadata(ROWS.tolist()) == shapes(64).metadata(ROWS.tolist())


def test_objects_lie_inside_and_apart():
    scenes = sample_scenes(ShapesConfig(two_object_fraction=1), "train", torch.arange(5000).numpy())
    side, up, down = (EXTENTS[scenes.shape] * scenes.radius[..., None]).transpose(2, 0, 1)
    x, y = scenes.centre[..., 0], scenes.centre[..., 1]
    inside = 1 - MARGIN + 1e-9
    assert (x - side >= MARGIN - 1e-9).all() and (x + side <= inside).all()
    assert (y - up >= MARGIN - 1e-9).all() and (y + down <= inside).all()
    beside = abs(x[:, 0] - x[:, 1]) > side.sum(1)
    below = y[:, 1] - y[:, 0] > down[:, 0] + up[:, 1]
    above = y[:, 0] - y[:, 1] > down[:, 1] + up[:, 0]
    assert (beside | below | above).all()


def test_the_primary_object_is_the_larger_and_of_another_colour():
    for facts in shapes(two_object_fraction=1).metadata(ROWS.tolist()):
        first, second = facts.factors["objects"]
        assert (first["size"], second["size"]) == ("large", "small")
        assert first["colour"] != second["colour"]


def test_labels_are_balanced():
    counts = torch.bincount(shapes().labels(range(20_000)), minlength=len(CLASSES))
    assert counts.min() > 0.8 * 20_000 / len(CLASSES)


def test_caption_label_and_factors_tell_one_story():
    for facts, label in zip(shapes().metadata(ROWS.tolist()), shapes().labels(ROWS.tolist()).tolist(), strict=True):
        first = facts.factors["objects"][0]
        assert facts.label == label
        assert CLASSES[label] == f"{first['colour']} {first['shape']}"
        assert facts.text.startswith(f"a {first['size']} {CLASSES[label]}")
        assert facts.text.endswith(f"on a {facts.factors['ground']} ground")


def discrete(scene: dict) -> tuple:
    return scene["ground"], [(thing["shape"], thing["colour"], thing["size"]) for thing in scene["objects"]]


def agreement(images: torch.Tensor, source: Shapes, rows: torch.Tensor) -> float:
    """Share of pictures whose ground, objects, sizes and positions (to a pixel) are read back right."""
    right = 0
    for image, facts in zip(images, source.metadata(rows.tolist()), strict=True):
        scene = read_factors(image)
        if scene is not None and discrete(scene.as_dict()) == discrete(facts.factors):
            pairs = zip(scene.objects, facts.factors["objects"], strict=True)
            right += all(abs(o.x - f["x"]) + abs(o.y - f["y"]) < 2 / image.shape[-1] for o, f in pairs)
    return right / len(rows)


@pytest.mark.parametrize(("size", "count"), [(32, 600), (64, 150)])
def test_the_checker_reads_every_real_picture(size, count):
    source, rows = shapes(size), torch.arange(count)
    assert agreement(source.pixels(rows), source, rows) == 1


def test_the_checker_reads_blurred_and_noisy_pictures():
    source, rows = shapes(32), torch.arange(250)
    blurred = gaussian_blur(source.pixels(rows), [5, 5], [0.7, 0.7])
    noise = torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0)) * 0.05 * 255
    assert agreement((blurred + noise).clamp(0, 255).round().byte(), source, rows) >= 0.98


def test_a_picture_obeys_its_own_label_only():
    images, labels = shapes().pixels(ROWS[:6]), shapes().labels(range(6)).tolist()
    for image, label in zip(images, labels, strict=True):
        assert [obeys_label(image, other) for other in range(len(CLASSES))] == [o == label for o in range(len(CLASSES))]
        assert obeys_label(image, CLASSES[label])


def test_an_unknown_label_is_refused():
    with pytest.raises(ValueError):
        obeys_label(shapes().pixels(ROWS[:1])[0], "pink elephant")


def blank() -> torch.Tensor:
    return torch.full((3, 32, 32), 248, dtype=torch.uint8)


def static() -> torch.Tensor:
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def smear() -> torch.Tensor:
    image = blank()
    image[:, 5:9, 2:30] = torch.tensor([214, 39, 40])[:, None, None]
    return image


def crowd() -> torch.Tensor:
    image = blank()
    for i, colour in enumerate([(214, 39, 40), (34, 150, 60), (31, 90, 214)]):
        image[:, 10 * i + 2 : 10 * i + 9, 12:19] = torch.tensor(colour)[:, None, None]
    return image


@pytest.mark.parametrize("picture", [blank, static, smear, crowd])
def test_what_is_no_scene_has_no_label(picture):
    assert label_of(picture()) is None
