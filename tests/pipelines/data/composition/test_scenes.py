"""Scenes in words."""

import numpy as np
import pytest

from pipelines.data.composition.scenes import COUNT, KINDS, OBJECT, RELATION, parse_caption


def some(kind, count=400):
    return map(kind.scene, kind.values(np.linspace(0, len(kind) - 1, count).astype(np.int64)).tolist())


def test_there_are_enough_captions_of_one_object():
    assert len(OBJECT) >= 8_000
    assert len(OBJECT.factors) >= 6


def test_captions_read_as_english():
    assert OBJECT.scene([0, 0, 0, 3, 2, 0, 0]).caption == (
        "a small red striped arrow pointing left, in the top left, on a white ground"
    )
    assert RELATION.scene([0, 0, 0, 5, 4, 1]).caption == "a red arrow left of a blue T on a grey ground"
    assert COUNT.scene([2, 2, 2, 0]).caption == "three green hearts on a white ground"
    assert COUNT.scene([0, 2, 2, 0]).caption == "one green heart on a white ground"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_caption_tells_its_scene_and_no_other(kind):
    for scene in some(kind):
        for caption in scene.captions:
            assert parse_caption(caption) == scene
            assert parse_caption(f" {caption.upper().replace(' ', '  ')}\n") == scene


@pytest.mark.parametrize("text", ["", "a cat", "a small red striped arrow", "six red arrows on a white ground"])
def test_other_texts_tell_no_scene(text):
    assert parse_caption(text) is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_numbers_and_words_are_one_scene(kind):
    values = kind.values(np.arange(len(kind)))
    assert len(np.unique(values, axis=0)) == len(kind)
    for scene, row in zip(some(kind), values[np.linspace(0, len(kind) - 1, 400).astype(np.int64)], strict=True):
        assert scene.values == tuple(row)


def test_a_pair_can_be_told_from_either_end():
    scene = RELATION.scene([0, 0, 3, 5, 4, 1])
    assert [one.caption for one in scene.equivalents] == [
        "a red arrow below a blue T on a grey ground",
        "a blue T above a red arrow on a grey ground",
    ]
    assert scene.equivalents[1].equivalents[1] == scene


def test_other_scenes_are_told_in_one_way():
    assert all(scene.equivalents == (scene,) for kind in (OBJECT, COUNT) for scene in some(kind, 20))
