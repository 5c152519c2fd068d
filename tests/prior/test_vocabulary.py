import pytest
from pydantic import ValidationError

from prior import Segment, Vocabulary

LABEL, CAPTION = Segment(name="label", size=4), Segment(name="caption", size=9, shape=(5,))
CODES = Segment(name="codes", size=7, shape=(2, 3), num_quantizers=2)


@pytest.mark.parametrize("condition", [LABEL, CAPTION])
def test_the_ids_of_all_positions_tile_the_vocabulary(condition):
    vocabulary = Vocabulary(segments=(condition, CODES))
    ranges = sorted(set(vocabulary.id_ranges), key=lambda ids: ids.start)
    assert [i for ids in ranges for i in ids] == list(range(vocabulary.size))
    assert len(vocabulary.id_ranges) == vocabulary.length == condition.length + 12


def test_the_quantizers_of_a_cell_take_turns():
    vocabulary = Vocabulary(segments=(LABEL, CODES))
    assert vocabulary.id_ranges == (range(4), *[range(4, 11), range(11, 18)] * 6)
    assert vocabulary.code_offsets == (4, 11) * 6


@pytest.mark.parametrize(("condition", "first"), [(LABEL, 4), (CAPTION, 0)])
def test_only_ids_that_some_position_predicts_have_a_logit(condition, first):
    vocabulary = Vocabulary(segments=(condition, CODES))
    predicted = {i for ids in vocabulary.id_ranges[1:] for i in ids}
    assert vocabulary.first_predicted_id == first == min(predicted)


def test_the_null_condition_is_no_label():
    vocabulary = Vocabulary.of_labels_and_codes(7, (2, 3, 2), num_classes=3)
    assert vocabulary == Vocabulary(segments=(LABEL, CODES))
    assert (vocabulary.null_condition, vocabulary.num_classes, vocabulary.conditional) == ((3,), 3, True)


def test_an_unconditional_vocabulary_knows_the_null_condition_alone():
    vocabulary = Vocabulary.of_labels_and_codes(7, (2, 3, 2))
    assert (vocabulary.null_condition, vocabulary.num_classes, vocabulary.conditional) == ((0,), None, False)


def test_it_survives_json():
    vocabulary = Vocabulary(segments=(CAPTION, CODES))
    assert Vocabulary.model_validate_json(vocabulary.model_dump_json()) == vocabulary


def test_a_condition_of_several_quantizers_is_refused():
    with pytest.raises(ValidationError, match="got 2 quantizers"):
        Vocabulary(segments=(CODES, CODES))
