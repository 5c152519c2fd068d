"""The pictures of scenes."""

import itertools

import numpy as np
import pytest
import torch

from pipelines.data.composition.drawing import (
    BOX,
    GROUND_PALETTE,
    PALETTE,
    TINY_BOX,
    covers,
    distance,
    draw,
    usual_covers,
)
from pipelines.data.composition.scenes import COUNT, KINDS, OBJECT, POSITIONS, RELATION


def pictures(kind, values, size=32, chance=0.4):
    values = np.array(values)
    order = np.tile(np.linspace(chance, 0.9, 9), (len(values), 1))
    return draw(kind, values, order, size)


def boxes(size, per_side, pictures_, places):
    """The parts of pictures at `places` (column, row; 0 … 2)."""
    box = size // per_side
    at = [round(place * (size - box) / 2) for place in range(3)]
    return [pictures_[..., at[y] : at[y] + box, at[x] : at[x] + box] for x, y in places]


def test_distances_are_those_of_a_square():
    """max(|x|, |y|) - 1 inside and beside a square, the distance from the corner beyond it."""
    square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)
    grid = np.linspace(-2, 2, 21) + 0.01
    points = np.stack(np.meshgrid(grid, grid), -1)
    beyond = np.abs(points) - 1
    expected = np.where((beyond > 0).all(-1), np.hypot(*np.moveaxis(beyond, -1, 0)), beyond.max(-1))
    assert np.allclose(distance(points, square), expected)


def test_every_object_differs_from_every_other_turned_or_not():
    """By 8 pixels of full contrast and more, at 32 pixels."""
    flat = torch.from_numpy(covers(32)).flatten(4).flatten(0, 3)
    apart = torch.cdist(flat, flat).square() + 1e3 * torch.eye(len(flat))
    assert apart.min() > 8


def test_objects_fill_their_boxes_and_no_more():
    found = covers(32)
    assert found.shape[-2:] == (16, 16) and found.min() >= 0 and found.max() <= 1
    small, large = found[:, 0], found[:, 1]
    assert not small[..., :2, :].any() and not small[..., -2:, :].any()
    assert all(part.any() for part in (large[..., :2, :], large[..., -2:, :], large[..., :, :2], large[..., :, -2:]))


def test_a_picture_of_one_object_is_a_function_of_its_caption():
    values = OBJECT.values(np.arange(0, len(OBJECT), 97))
    assert torch.equal(pictures(OBJECT, values, chance=0.0), pictures(OBJECT, values, chance=0.8))


def test_the_object_stands_where_the_caption_says():
    for number, place in enumerate(POSITIONS.values()):
        picture = pictures(OBJECT, [[1, 2, 1, 0, 0, number, 0]])
        (here,) = boxes(32, BOX, picture, [place])
        assert (here != 250).any(1).sum() == (picture != 250).any(1).sum() > 100


@pytest.mark.parametrize(("relation", "first", "other"), [(0, 0, 2), (1, 2, 0), (2, 0, 2), (3, 2, 0)])
def test_pairs_stand_as_their_relation_says(relation, first, other):
    for line, chance in enumerate((0.1, 0.4, 0.8)):
        picture = pictures(RELATION, [[0, 0, relation, 5, 4, 0]], chance=chance)
        places = [(first, line), (other, line)] if relation < 2 else [(line, first), (line, other)]
        for part, colour in zip(boxes(32, BOX, picture, places), PALETTE[[0, 4]], strict=True):
            seen = part[0].permute(1, 2, 0)[(part[0] != 250).any(0)].float()
            share = (seen - 250) / (torch.from_numpy(colour) - 250)
            assert torch.allclose(share, share[:, :1].expand_as(share), atol=0.03)


def test_so_many_objects_are_drawn_as_the_caption_says():
    for count in range(5):
        picture = pictures(COUNT, [[count, 1, 2, 0]])
        parts = boxes(32, TINY_BOX, picture, itertools.product(range(3), repeat=2))
        assert sum((part != 250).any().item() for part in parts) == count + 1
        inside = sum((part != 250).any(1).sum() for part in parts)
        assert inside == (picture != 250).any(1).sum()


def test_colours_and_grounds_are_far_apart():
    every = np.concatenate([PALETTE, GROUND_PALETTE])
    apart = np.sqrt(((every[:, None] - every) ** 2).sum(-1)) + 1e3 * np.eye(len(every))
    assert apart.min() > 90


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("size", [1, 7, 28, 33, 64])
def test_any_size_is_drawn(kind, size):
    found = pictures(kind, kind.values(np.arange(0, len(kind), 301)), size)
    assert found.shape[1:] == (3, size, size) and found.dtype == torch.uint8


def test_twice_the_size_is_the_same_picture():
    """Pixels that an outline does not cross are the same."""
    for half, whole in ((covers(32), covers(64)), (usual_covers(32, True), usual_covers(64, True))):
        mean = whole.reshape(*half.shape[:-1], 2, half.shape[-1], 2).mean((-1, -3)).swapaxes(-1, -1)
        assert np.abs(mean - half).mean() < 0.02
