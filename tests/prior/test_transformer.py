import pytest
import torch
from pydantic import ValidationError

from prior import PriorConfig, TokenPrior, TransformerConfig

POSITIONS = ["learned", "rotary"]
GRIDS = [(3, 4, 1), (2, 3, 2)]


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("grid", GRIDS)
def test_no_logit_depends_on_its_own_or_a_later_code(make_prior, grid, positions, flash):
    prior = make_prior(grid=grid, positions=positions, flash=flash)
    codes, labels = torch.randint(0, 11, (1, *grid)), torch.tensor([1])
    embedded = []
    embedding = prior.network.token_embedding
    hook = embedding.register_forward_hook(lambda _, __, out: embedded.append(out.requires_grad_()) or out)
    logits = prior(codes, labels)
    hook.remove()
    for position in range(prior.vocabulary.codes.length):
        (gradient,) = torch.autograd.grad(logits[0, position].square().sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0  # input i holds the condition (i = 0) or code i - 1
        assert reached.tolist() == [i <= position for i in range(prior.vocabulary.codes.length)]


def test_logits_have_one_row_per_code_and_one_column_per_member_of_the_codebook(make_prior):
    assert make_prior(grid=(2, 3, 2))(torch.zeros(5, 2, 3, 2, dtype=torch.long)).shape == (5, 12, 11)


@pytest.mark.parametrize("positions", POSITIONS)
def test_gradients_reach_every_parameter(make_prior, positions):
    prior = make_prior(grid=(2, 3, 2), positions=positions, condition_dropout=0.5).train()
    codes = torch.arange(8 * 12).view(8, 2, 3, 2) % 11
    prior(codes, torch.arange(8) % 3).square().mean().backward()
    unreached = [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def test_a_dropped_label_gives_the_logits_of_no_label(make_prior):
    prior = make_prior(condition_dropout=1.0).train()
    codes = torch.randint(0, 11, (4, 3, 4, 1))
    assert torch.equal(prior(codes, torch.tensor([0, 1, 2, 0])), prior(codes))


def test_labels_are_never_dropped_in_evaluation(make_prior):
    prior = make_prior(condition_dropout=1.0)
    codes = torch.randint(0, 11, (1, 3, 4, 1))
    assert not torch.allclose(prior(codes, torch.tensor([0])), prior(codes))


@pytest.mark.parametrize("positions", POSITIONS)
def test_equal_codes_are_told_apart_by_their_place(make_prior, positions):
    logits = make_prior(positions=positions)(torch.zeros(1, 3, 4, 1, dtype=torch.long))[0]
    if positions == "rotary":
        logits = logits[:2]  # relative positions: only the condition, the one different token, marks the beginning
    distances = torch.cdist(logits, logits) + torch.eye(len(logits))
    assert distances.min() > 1e-3


def test_evaluation_mode_gives_the_mode_back(make_prior):
    prior = make_prior().train()
    with pytest.raises(RuntimeError), prior.evaluation_mode():
        assert not prior.training and not torch.is_grad_enabled()
        raise RuntimeError
    assert prior.training and torch.is_grad_enabled()


@pytest.mark.parametrize("positions", POSITIONS)
def test_state_and_config_rebuild_the_prior(make_prior, positions):
    prior = make_prior(positions=positions)
    rebuilt = TokenPrior(PriorConfig.model_validate_json(prior.config.model_dump_json())).eval()
    rebuilt.load_state_dict(prior.state_dict(), strict=True)
    codes = torch.randint(0, 11, (2, 3, 4, 1))
    assert torch.equal(prior(codes), rebuilt(codes))


def test_the_feed_forward_has_the_documented_width(make_prior):
    prior = make_prior(dim=48, heads=3)
    assert prior.config.transformer.ff_dim == 128
    assert prior.network.blocks[0].feedforward.ff[0].proj.weight.shape == (2 * 128, 48)


def test_rotary_positions_need_an_even_head():
    with pytest.raises(ValidationError, match="even head_dim, got 7"):
        TransformerConfig(positions="rotary", head_dim=7)
