import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from prior import PriorConfig, TokenPrior, TransformerConfig, codes_to_tokens, sequence_logprobs
from prior.attention import LayerMasks
from prior.conditioning import condition_tokens
from tests.prior.transformer_wrapper import transformer_wrapper
from tests.prior.variants import GRIDS, POSITIONS


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
    for position in range(prior.vocabulary.code_length):
        (gradient,) = torch.autograd.grad(logits[0, position].square().sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0  # input i holds the condition (i = 0) or code i - 1
        assert reached.tolist() == [i <= position for i in range(prior.vocabulary.code_length)]


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


@pytest.mark.parametrize("caption", [None, 5])
@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("grid", GRIDS)
def test_logits_are_those_of_x_transformers_with_the_same_weights(make_prior, grid, positions, flash, caption):
    prior = make_prior(grid=grid, positions=positions, flash=flash, caption=caption)
    codes = torch.randint(0, 11, (3, *grid))
    prefix = condition_tokens(prior.vocabulary, None, 3, prior.device)
    tokens = torch.cat([prefix, codes_to_tokens(codes, prior.vocabulary)[:, :-1]], dim=1)
    with torch.no_grad():
        of_all_ids = transformer_wrapper(prior)(tokens)[:, prefix.shape[1] - 1 :]
        places = torch.arange(12) % grid[2]
        expected = of_all_ids.unflatten(-1, (grid[2], 11))[:, torch.arange(12), places]
        torch.testing.assert_close(prior(codes), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_layer_follows_its_own_mask(make_prior, positions, flash):
    prior = make_prior(positions=positions, flash=flash, depth=3, window=2)
    embedded = []
    hook = prior.network.token_embedding.register_forward_hook(
        lambda _, __, out: embedded.append(out.requires_grad_()) or out
    )
    logits = prior(torch.randint(0, 11, (1, 3, 4, 1)), torch.tensor([1]))
    hook.remove()
    reach = torch.eye(12)
    for mask in prior.network.masks.for_layers(prior.network.masks.distinct):
        layer = torch.ones(12, 12).tril() if mask is None else mask.float()
        reach = reach + layer @ reach
    for position in range(12):
        (gradient,) = torch.autograd.grad(logits[0, position].square().sum(), embedded, retain_graph=True)
        assert torch.equal(gradient[0].abs().sum(-1) > 0, reach[position] > 0)


def test_a_mask_that_hides_everything_but_a_token_itself_leaves_it_alone(make_prior):
    prior = make_prior(positions="rotary", depth=2, window=1)
    prior.network.masks = LayerMasks([torch.eye(12, dtype=torch.bool)] * 2)
    codes = torch.randint(0, 11, (1, 3, 4, 1))
    other = codes.clone()
    other[0, 0, 0, 0] = (other[0, 0, 0, 0] + 1) % 11
    changed = (prior(codes) != prior(other)).any(-1)[0]
    assert changed.tolist() == [i == 1 for i in range(12)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_angles_are_exact_in_half_precision(make_prior, dtype):
    prior = make_prior(grid=(32, 32, 1), positions="rotary", sharpen=1.0).to(dtype)
    codes = torch.randint(0, 11, (4, 32, 32, 1))
    half = sequence_logprobs(prior, codes).double()
    exact = sequence_logprobs(prior.double(), codes)  # the same rounded weights
    assert (half - exact)[:, 512:].abs().mean() < 0.02


def test_a_prior_is_built_from_options_alone_before_x_transformers_is_imported():
    program = "import sys, prior; prior.TransformerConfig(); sys.exit('x_transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.slow
def test_building_a_prior_warns_of_nothing():
    program = "from prior import *; TokenPrior(PriorConfig(vocabulary=Vocabulary.of_labels_and_codes(2, (1, 1, 1))))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stderr == b""
