"""The checker reads scenes back from pixels, and tells what is no scene."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from pipelines.data.composition.checker import TOLERANCE, read_scenes
from pipelines.data.composition.drawing import GROUND_PALETTE, PALETTE, draw
from pipelines.data.composition.scenes import COUNT, KINDS, OBJECT, RELATION
from pipelines.data.composition.source import Composition, CompositionConfig

SHARES = {"object": {}, "relation": {"relation_fraction": 1.0}, "count": {"count_fraction": 1.0}}


def composition(kind, size=32) -> Composition:
    return Composition(CompositionConfig(**SHARES[kind.name]), "train", size)


def right(images, scenes) -> float:
    """The share of images that are legible and show their scene."""
    found = zip(read_scenes(images), scenes, strict=True)
    return float(np.mean([reading.legible and reading.scene in scene.equivalents for reading, scene in found]))


@pytest.mark.slow
def test_every_picture_of_one_object_is_read_at_32_pixels():
    values = OBJECT.values(np.arange(len(OBJECT)))
    for part in np.array_split(values, 10):
        readings = read_scenes(draw(OBJECT, part, np.zeros((len(part), 9)), 32))
        assert [reading.scene for reading in readings] == [OBJECT.scene(row) for row in part.tolist()]
        assert max(reading.error for reading in readings) == 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("size", "count"), [(32, 600), (28, 100), (64, 150)])
def test_real_pictures_are_read_exactly(kind, size, count):
    source = composition(kind, size)
    images, scenes = source.pixels(torch.arange(count)), source.scenes(range(count))
    readings = read_scenes(images)
    assert all(reading.scene in scene.equivalents for reading, scene in zip(readings, scenes, strict=True))
    assert max(reading.error for reading in readings) == 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_soft_noisy_and_pale_pictures_are_read(kind):
    source = composition(kind)
    images, scenes = source.pixels(torch.arange(250)), source.scenes(range(250))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * 0.03 * 255
    soft = gaussian_blur(images, [5, 5], [0.5, 0.5])
    assert right((soft + noise).clamp(0, 255).round().byte(), scenes) == 1
    ground = torch.from_numpy(GROUND_PALETTE)[[scene.values[-1] for scene in scenes]][..., None, None]
    assert right((ground + 0.8 * (images - ground)).round().byte(), scenes) == 1


def test_the_scene_is_the_nearest_of_all():
    """Also where the image is far from every scene: against a search among all pictures of one object."""
    values = OBJECT.values(np.arange(len(OBJECT)))
    values = values[(values[:, -1] == 0) & (values[:, 0] < 3) & (values[:, 1] < 3)]
    templates = draw(OBJECT, values, np.zeros((len(values), 9)), 32).flatten(1).float()
    random = np.random.default_rng(0)
    first, second = (random.choice(len(values), 40) for _ in range(2))
    images = (0.55 * templates[first] + 0.45 * templates[second]).round().byte()
    nearest = torch.cdist(images.float(), templates)
    for image, distances in zip(images.view(-1, 3, 32, 32), nearest, strict=True):
        (reading,) = read_scenes(image[None])
        if reading.scene.kind is OBJECT:
            own = draw(OBJECT, np.array([reading.scene.values]), np.zeros((1, 9)), 32).flatten().float()
            assert (own - image.flatten().float()).norm() <= distances.min() + 0.5


def single(**changes) -> torch.Tensor:
    """A large pink heart in the centre of a white ground."""
    values = dict(zip(OBJECT.factors, [2, 5, 1, 2, 0, 2, 0], strict=True)) | changes
    return draw(OBJECT, np.array([list(values.values())]), np.zeros((1, 9)), 32)[0]


def blank():
    return torch.full((3, 32, 32), 250, dtype=torch.uint8)


def static():
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def half_an_object():
    image = single()
    image[:, :, 16:] = 250
    return image


def blob():
    return gaussian_blur(single(), [15, 15], [2.5, 2.5])


def two_of_one():
    return torch.minimum(single(position=0, size=0), single(position=4, size=0))


def extra_object():
    return torch.minimum(single(size=0), draw(COUNT, np.array([[0, 2, 5, 0]]), np.linspace(0, 1, 9)[None], 32)[0])


def filled_hole():
    solid, hollow = single(fill=0), single(fill=1)
    return ((solid.float() + hollow) / 2).byte()


def stripes_run_together():
    return gaussian_blur(single(fill=2), [1, 9], [0.1, 2.0])


def hole():
    image = single()
    image[:, 14:18, 14:18] = 250
    return image


def stained():
    image = single()
    image[:, :4, :4] = torch.from_numpy(PALETTE[5])[:, None, None].byte()
    return image


def six_objects():
    image = draw(COUNT, np.array([[4, 2, 5, 0]]), np.linspace(0, 1, 9)[None], 32)[0]
    return torch.minimum(image, draw(COUNT, np.array([[0, 2, 5, 0]]), np.linspace(1, 0, 9)[None], 32)[0])


def unequal_objects():
    image = draw(COUNT, np.array([[2, 2, 5, 0]]), np.linspace(0, 1, 9)[None], 32)[0]
    return torch.minimum(image, draw(COUNT, np.array([[0, 0, 5, 0]]), np.linspace(1, 0, 9)[None], 32)[0])


BROKEN = [
    blank,
    static,
    half_an_object,
    two_of_one,
    extra_object,
    filled_hole,
    hole,
    stained,
    six_objects,
    unequal_objects,
]


@pytest.mark.parametrize("picture", BROKEN)
def test_what_is_no_scene_is_not_legible(picture):
    (reading,) = read_scenes(picture()[None])
    assert reading.error > TOLERANCE and not reading.legible


@pytest.mark.parametrize("picture", [blob, stripes_run_together])
def test_what_is_only_blurred_is_legible(picture):
    (reading,) = read_scenes(picture()[None])
    told = reading.scene.factors
    assert reading.legible and (told["shape"], told["rotation"], told["colour"]) == ("heart", "down", "pink")


def test_what_lacks_a_half_is_not_legible():
    """Of all single objects, in whatever colours."""
    source = composition(OBJECT)
    images = source.pixels(torch.arange(250))
    for image, scene in zip(images, source.scenes(range(250)), strict=True):
        ground = torch.from_numpy(GROUND_PALETTE)[scene.values[-1]].byte()[:, None, None]
        columns = (image != ground).any(0).any(0).nonzero()
        image[:, :, int(columns.min() + columns.max() + 1) // 2 :] = ground
    assert not any(reading.legible for reading in read_scenes(images))


def test_a_pair_is_told_from_its_near_end():
    scene = RELATION.scene([0, 0, 3, 5, 4, 1])
    (reading,) = read_scenes(draw(RELATION, np.array([scene.values]), np.full((1, 9), 0.5), 32))
    assert reading.scene == scene.equivalents[1]


def test_no_images_have_no_readings():
    assert read_scenes(torch.empty(0, 3, 32, 32, dtype=torch.uint8)) == []
