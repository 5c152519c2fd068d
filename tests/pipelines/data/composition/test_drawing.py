"""The pictures of scenes."""

import itertools

import numpy as np
import pytest
import torch

from pipelines.data.composition.drawing import (
    CELLS,
    COUNTED,
    GROUND_PALETTE,
    PAIRED,
    PALETTE,
    SIDES,
    cells_to_pixels,
    covers,
    draw,
    first_cells,
    usual_covers,
)
from pipelines.data.composition.pixel_art import GAP
from pipelines.data.composition.scenes import COUNT, KINDS, OBJECT, POSITIONS, RELATION

CELL = 2  # pixels, at 32 pixels


def pictures(kind, values, size=32, chance=0.4):
    values = np.array(values)
    order = np.tile(np.linspace(chance, 0.9, 9), (len(values), 1))
    return draw(kind, values, order, size)


def part(picture, side, place):
    """What stands at a place (column, row; 0 … 2) of a picture of 32 pixels."""
    x, y = (first_cells(np.array(place), side) * CELL).tolist()
    return picture[..., y : y + side * CELL, x : x + side * CELL]


@pytest.mark.parametrize("side", SIDES.values())
def test_every_object_differs_from_every_other_turned_or_not(side):
    """By 4 cells of full contrast and more."""
    flat = torch.from_numpy(covers(side)).flatten(3).flatten(0, 2)
    apart = torch.cdist(flat, flat).square() + 1e3 * torch.eye(len(flat))
    assert apart.min() > 3.99


@pytest.mark.parametrize("side", [PAIRED, COUNTED])
def test_objects_told_by_their_shape_alone_differ(side):
    flat = torch.from_numpy(usual_covers(side)).flatten(1)
    apart = torch.cdist(flat, flat).square() + 1e3 * torch.eye(len(flat))
    assert apart.min() > 1.99


@pytest.mark.parametrize("side", SIDES.values())
def test_fills_are_seen_in_every_object(side):
    solid, outlined, striped = np.moveaxis(covers(side), 2, 0)
    assert set(np.unique(solid)) == set(np.unique(outlined)) == {0, 1}
    assert set(np.unique(striped)) == {0, np.float32(GAP), 1}
    assert ((outlined == 1) <= (solid == 1)).all() and ((striped > 0) == (solid == 1)).all()
    hole = (solid - outlined).sum((-1, -2))
    assert hole.min() >= 6


@pytest.mark.parametrize("side", SIDES.values())
def test_objects_fill_their_sides_and_turn_clockwise(side):
    found = covers(side)
    for edge in (found[..., 0, :], found[..., -1, :], found[..., 0], found[..., -1]):
        assert (edge.max(-1) > 0).all()
    up, right = found[:, 0], found[:, 1]
    assert (right[..., ::-1] == up.swapaxes(-1, -2)).all()


def test_few_patches_make_up_all_pictures():
    """A thousand patches of 4 x 4 pixels and fewer, so that a small codebook can hold them."""
    images = pictures(OBJECT, OBJECT.values(np.arange(len(OBJECT))))
    patches = torch.nn.functional.unfold(images.float(), 4, stride=4).transpose(1, 2).reshape(-1, 48)
    assert len(np.unique(patches.byte().numpy(), axis=0)) < 1000


def test_a_picture_of_one_object_is_a_function_of_its_caption():
    values = OBJECT.values(np.arange(0, len(OBJECT), 97))
    assert torch.equal(pictures(OBJECT, values, chance=0.0), pictures(OBJECT, values, chance=0.8))


@pytest.mark.parametrize("size", range(2))
def test_the_object_stands_where_the_caption_says(size):
    side = list(SIDES.values())[size]
    for number, place in enumerate(POSITIONS.values()):
        picture = pictures(OBJECT, [[1, 2, size, 0, 0, number, 0]])
        here = part(picture, side, place)
        assert (here != 250).any(1).sum() == (picture != 250).any(1).sum() > 100


@pytest.mark.parametrize(("relation", "first", "other"), [(0, 0, 2), (1, 2, 0), (2, 0, 2), (3, 2, 0)])
def test_pairs_stand_as_their_relation_says(relation, first, other):
    for line, chance in enumerate((0.1, 0.4, 0.8)):
        picture = pictures(RELATION, [[0, 0, relation, 5, 4, 0]], chance=chance)
        places = [(first, line), (other, line)] if relation < 2 else [(line, first), (line, other)]
        count = 0
        for place, colour in zip(places, PALETTE[[0, 4]], strict=True):
            here = part(picture, PAIRED, place)
            found = (here == torch.from_numpy(colour)[:, None, None]).all(1).sum()
            assert found > 60
            count += found
        assert count == (picture != 250).any(1).sum()


def test_so_many_objects_are_drawn_as_the_caption_says():
    for count in range(5):
        picture = pictures(COUNT, [[count, 1, 2, 0]])
        parts = [part(picture, COUNTED, place) for place in itertools.product(range(3), repeat=2)]
        assert sum((found != 250).any().item() for found in parts) == count + 1
        assert sum((found != 250).any(1).sum() for found in parts) == (picture != 250).any(1).sum()


def test_colours_and_grounds_are_far_apart():
    every = np.concatenate([PALETTE, GROUND_PALETTE])
    apart = np.sqrt(((every[:, None] - every) ** 2).sum(-1)) + 1e3 * np.eye(len(every))
    assert apart.min() > 90


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("size", [1, 7, 28, 33, 64])
def test_any_size_is_drawn(kind, size):
    found = pictures(kind, kind.values(np.arange(0, len(kind), 301)), size)
    assert found.shape[1:] == (3, size, size) and found.dtype == torch.uint8


@pytest.mark.parametrize("size", [1, 7, 16, 28, 33, 64])
def test_a_pixel_is_the_mean_of_the_cells_that_it_covers(size):
    scale = cells_to_pixels(size)
    assert np.allclose(scale.sum(1), 1, atol=1e-5)
    fine = np.repeat(np.eye(CELLS), size, 0).reshape(size, CELLS, CELLS).mean(1)
    assert np.allclose(scale, fine, atol=1e-5)


def test_whole_cells_are_drawn_as_by_the_matrix():
    values = OBJECT.values(np.arange(0, len(OBJECT), 997))
    scale = cells_to_pixels(48)
    cells = pictures(OBJECT, values, CELLS).numpy().astype(np.float32)
    assert np.abs(scale @ cells @ scale.T - pictures(OBJECT, values, 48).numpy()).max() < 1e-2


def test_all_pictures_of_one_object_are_made_of_801_squares():
    images = pictures(OBJECT, OBJECT.values(np.arange(len(OBJECT))))
    squares = images.unfold(2, 4, 4).unfold(3, 4, 4).movedim(1, 3).reshape(-1, 48)
    assert len(torch.unique(squares, dim=0)) == 801
