"""Augmentation is a pure function of the seed and the place in the stream."""

import numpy as np
import torch
from torchvision.transforms.v2 import functional as reference

from pipelines.data.augment import Augment, augment

IMAGES = torch.randint(0, 256, (64, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PLACES = np.arange(64)


def test_nothing_is_the_identity():
    assert augment(IMAGES, Augment(), 0, PLACES) is IMAGES


def test_each_image_depends_on_its_own_place():
    config = Augment(horizontal_flip=True, shift=2)
    whole = augment(IMAGES, config, 5, PLACES)
    halves = [augment(IMAGES[part], config, 5, PLACES[part]) for part in (slice(0, 32), slice(32, 64))]
    assert torch.equal(torch.cat(halves), whole)


def test_flips_are_mirrors_of_about_half():
    found = augment(IMAGES, Augment(horizontal_flip=True), 1, PLACES)
    mirrored = (found == IMAGES.flip(-1)).flatten(1).all(1)
    same = (found == IMAGES).flatten(1).all(1)
    assert bool((mirrored | same).all())
    assert 20 <= int(mirrored.sum()) <= 44


def test_shifts_are_crops_of_the_edge_padded_picture():
    found = augment(IMAGES, Augment(shift=2), 1, PLACES)
    padded = reference.pad(IMAGES, [2, 2, 2, 2], padding_mode="edge")
    crops = torch.stack([padded[..., y : y + 9, x : x + 7] for y in range(5) for x in range(5)])
    hits = (crops == found).flatten(2).all(2)
    assert bool(hits.any(0).all())
    assert len(set(hits.float().argmax(0).tolist())) > 15  # nearly all of the 25 offsets occur


def test_the_input_is_left_alone():
    before = IMAGES.clone()
    augment(IMAGES, Augment(horizontal_flip=True, shift=2), 1, PLACES)
    assert torch.equal(IMAGES, before)
