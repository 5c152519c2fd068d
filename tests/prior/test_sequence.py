import pytest
import torch

from prior import Vocabulary, codes_to_tokens, tokens_to_codes
from prior.conditioning import condition_tokens, drop_condition

CPU = torch.device("cpu")


@pytest.mark.parametrize("grid", [(4, 5, 1), (3, 2, 3)])
def test_codes_survive_the_round_trip_through_tokens(grid):
    vocabulary = Vocabulary.of_labels_and_codes(7, grid)
    codes = torch.randint(0, 7, (6, *grid))
    assert torch.equal(tokens_to_codes(codes_to_tokens(codes, vocabulary), vocabulary), codes)


def test_tokens_run_in_raster_order_then_by_quantizer():
    codes = torch.tensor([[[[0, 1], [2, 3]], [[4, 0], [1, 2]]]])
    tokens = codes_to_tokens(codes, Vocabulary.of_labels_and_codes(5, (2, 2, 2)))
    assert tokens.tolist() == [[1 + 0, 1 + 5 + 1, 1 + 2, 1 + 5 + 3, 1 + 4, 1 + 5 + 0, 1 + 1, 1 + 5 + 2]]


def test_every_kind_of_token_has_ids_of_its_own():
    vocabulary = Vocabulary.of_labels_and_codes(5, (1, 1, 2), 3)
    codes = torch.stack(torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"), -1).view(25, 1, 1, 2)
    labels = condition_tokens(vocabulary, torch.arange(3), 3, CPU)
    null = condition_tokens(vocabulary, None, 1, CPU)
    ids = torch.cat([codes_to_tokens(codes, vocabulary).flatten().unique(), labels.flatten(), null.flatten()])
    assert sorted(ids.tolist()) == list(range(vocabulary.size))


def test_a_dropped_condition_is_the_null_condition():
    vocabulary = Vocabulary.of_labels_and_codes(5, (2, 2, 1), 3)
    labels = condition_tokens(vocabulary, torch.tensor([0, 1, 2]), 3, CPU)
    assert torch.equal(drop_condition(labels, vocabulary, 1.0), condition_tokens(vocabulary, None, 3, CPU))
    assert torch.equal(drop_condition(labels, vocabulary, 0.0), labels)


def test_conditions_are_dropped_as_often_as_asked():
    vocabulary = Vocabulary.of_labels_and_codes(5, (2, 2, 1), 3)
    torch.manual_seed(0)
    dropped = drop_condition(torch.full((20_000, 1), 0), vocabulary, 0.1) == vocabulary.null_condition[0]
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("code", [-1, 5])
def test_a_code_out_of_range_is_refused(code):
    with pytest.raises(ValueError, match=rf"codes must lie in \[0, 5\), found {code}"):
        codes_to_tokens(torch.full((1, 2, 2, 1), code), Vocabulary.of_labels_and_codes(5, (2, 2, 1)))


def test_a_foreign_grid_is_refused():
    with pytest.raises(ValueError, match=r"grid \(2, 3, 1\), the prior expects \(2, 2, 1\)"):
        codes_to_tokens(torch.zeros(1, 2, 3, 1, dtype=torch.long), Vocabulary.of_labels_and_codes(5, (2, 2, 1)))


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        ([0, 1], None, "unconditional"),
        ([0, 3], 3, r"label must lie in \[0, 3\), found 3"),
        ([0], 3, "label: found 1 rows for 2 images"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, num_classes, message):
    vocabulary = Vocabulary.of_labels_and_codes(5, (2, 2, 1), num_classes)
    with pytest.raises(ValueError, match=message):
        condition_tokens(vocabulary, torch.tensor(labels), 2, CPU)
