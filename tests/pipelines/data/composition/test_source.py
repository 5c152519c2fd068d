"""The rows of the composition data: which scenes each split shows."""

import hashlib

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipelines.base.errors import UserError
from pipelines.data.composition.scenes import COUNT, KINDS, OBJECT, RELATION, parse_caption
from pipelines.data.composition.source import Composition, CompositionConfig, combination, is_held_out, shown
from pipelines.data.source import SPLITS

MIXED = {"relation_fraction": 0.3, "count_fraction": 0.2}


def composition(split="train", size=32, **fields) -> Composition:
    return Composition(CompositionConfig(**fields), split, size)


def test_pictures_keys_and_captions_are_pinned():
    """Measured figures rest on these very pictures."""
    digest = hashlib.sha256()
    for split in SPLITS:
        source = composition(split, seed=3, **MIXED, paraphrases=True)
        digest.update(source.pixels(torch.arange(200)).numpy().tobytes())
        digest.update(repr([(row.key, row.text, row.factors) for row in source.metadata(range(200))]).encode())
    assert digest.hexdigest() == "d5dbd5dd5b07d444fbb5bd3b62364429c70b351410c743eab8f1c2d0275913e9"


def test_a_row_is_the_same_in_any_company():
    source, rows = composition(**MIXED, paraphrases=True), torch.arange(300)
    whole, facts = source.pixels(rows), source.metadata(range(300))
    assert torch.equal(source.pixels(rows[[250, 7, 40]]), whole[[250, 7, 40]])
    assert source.metadata([250, 7, 40]) == [facts[250], facts[7], facts[40]]


def test_seeds_and_splits_differ():
    first = composition().pixels(torch.arange(20))
    assert not torch.equal(first, composition("test").pixels(torch.arange(20)))
    assert not torch.equal(first, composition(seed=1).pixels(torch.arange(20)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_two_splits_show_one_combination(kind):
    shares = {}
    seen: set[int] = set()
    for split in SPLITS:
        found = set(combination(kind, kind.values(shown(kind, 0, 0.1, split))).tolist())
        assert not found & seen
        seen |= found
        shares[split] = len(found)
    whole = sum(shares.values())
    assert abs(shares["test"] / whole - 0.1) < 0.06 and abs(shares["validation"] / whole - 0.1) < 0.06


def test_a_pair_told_from_its_other_end_is_held_out_with_it():
    values = RELATION.values(np.arange(0, len(RELATION), 11))
    turned = np.array([RELATION.scene(row).equivalents[1].values for row in values.tolist()])
    assert (combination(RELATION, values) == combination(RELATION, turned)).all()
    assert (
        len(set(combination(RELATION, RELATION.values(np.arange(len(RELATION)))).tolist())) == len(RELATION) // 3 // 2
    )


def test_grounds_of_a_count_are_held_out_together():
    values = COUNT.values(np.arange(len(COUNT)))
    numbers = combination(COUNT, values)
    assert all(len(set(values[numbers == number][:, -1])) == 3 for number in set(numbers.tolist()))


def test_a_scene_knows_whether_it_is_held_out():
    config = CompositionConfig(**MIXED)
    for split in SPLITS:
        scenes = composition(split, **MIXED).scenes(range(60))
        assert {is_held_out(scene, config) for scene in scenes} == {split != "train"}


def test_nothing_is_held_out_without_a_fraction():
    config = CompositionConfig(held_out_fraction=0)
    assert all(len(shown(OBJECT, 0, 0.0, split)) == len(OBJECT) for split in SPLITS)
    assert not is_held_out(OBJECT.scene([0] * 7), config)


def test_every_scene_of_a_split_comes_before_any_comes_again():
    source = composition()
    count = len(shown(OBJECT, 0, 0.1, "train"))
    captions = [scene.caption for scene in source.scenes(range(2 * count))]
    assert len(set(captions[:count])) == len(set(captions[count:])) == count
    assert captions[:count] != captions[count:]


@pytest.mark.parametrize(
    ("relation", "count"), [(0, 0), (1, 0), (0, 1), (0.3, 0.2), (0.5, 0.5), (0.1, 0.6), (1 / 3, 1 / 3)]
)
def test_kinds_have_their_shares_of_any_first_rows(relation, count):
    source = composition(relation_fraction=relation, count_fraction=count)
    for rows in (1, 10, 77, 1000):
        kinds = [scene.kind for scene in source.scenes(range(rows))]
        assert abs(kinds.count(RELATION) - relation * rows) <= 1.01
        assert abs(kinds.count(COUNT) - count * rows) <= 1.01


def test_every_scene_of_a_kind_is_shown_also_beside_others():
    source = composition(**MIXED)
    captions = [scene.caption for scene in source.scenes(range(4000)) if scene.kind is RELATION]
    assert len(set(captions)) == len(captions)


def test_the_objects_of_a_pair_differ():
    for scene in composition(relation_fraction=1).scenes(range(2000)):
        told = scene.factors
        assert (told["shape"], told["colour"]) != (told["other_shape"], told["other_colour"])


def test_caption_and_factors_tell_one_scene():
    source = composition(**MIXED, paraphrases=True)
    facts, scenes = source.metadata(range(200)), source.scenes(range(200))
    for row, scene in zip(facts, scenes, strict=True):
        assert parse_caption(row.text) == scene
        assert row.factors == {"scene": scene.kind.name, **scene.factors}
    plain = [row.text for row in composition(**MIXED).metadata(range(200))]
    assert plain == [scene.caption for scene in scenes] != [row.text for row in facts]


def test_factors_are_independent_integers_of_scenes_of_one_object():
    source = composition()
    found = source.factors(range(5000))
    assert found is not None and found.names == tuple(OBJECT.factors)
    assert (found.values.max(0) + 1 == found.sizes).all() and not found.values.min(0).any()
    assert np.abs(np.corrcoef(found.values.T) - np.eye(7)).max() < 0.06
    assert [OBJECT.scene(row) for row in found.values[:50].tolist()] == source.scenes(range(50))
    assert composition(**MIXED).factors(range(5)) is None


@pytest.mark.parametrize(("relation", "count"), [(0.59, 0.41), (0.41, 0.59), (0.9, 0.1), (1, 0), (0, 1)])
def test_shares_that_are_all_leave_no_row_to_another_kind(relation, count):
    source = composition(relation_fraction=relation, count_fraction=count)
    kinds = {kind for kind, _, _ in source.parts(np.arange(20_000))}
    assert kinds == {kind for kind, share in ((RELATION, relation), (COUNT, count)) if share}


def test_shares_of_more_than_everything_are_refused():
    with pytest.raises(ValidationError, match=r"relation_fraction: 0\.7 and count_fraction: 0\.4 are more than 1"):
        CompositionConfig(relation_fraction=0.7, count_fraction=0.4)


def test_a_split_without_a_scene_is_refused():
    with pytest.raises(UserError, match="held_out_fraction: 1e-06 leaves the test split no scene of the kind count"):
        composition("test", held_out_fraction=1e-6, count_fraction=0.5)
