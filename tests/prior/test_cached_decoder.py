import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from prior import CachedDecoder, SamplingOptions, SamplingRequest, generate
from prior.conditioning import condition_tokens
from tests.prior.variants import GRIDS, POSITIONS

LABELS = torch.tensor([0, 2, 1])


def prefix_of(prior):
    return condition_tokens(prior.vocabulary, LABELS, 3, prior.device)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_decoded_logits_are_those_of_the_modules(make_prior, fixed_shapes, grid, positions, heads, window):
    prior = make_prior(grid=grid, positions=positions, heads=heads, window=window)
    codes = torch.randint(0, 11, (3, *grid))
    expected = prior(codes, LABELS)
    decoder = CachedDecoder(prior, fixed_shapes)
    sequence = codes.flatten(1)
    for start in (4, 1, 0):  # a decoder starts anew with each prefill
        prefilled = decoder.prefill(prefix_of(prior), sequence[:, :start])
        stepped = [decoder.step(sequence[:, i]) for i in range(start, 11)]
        torch.testing.assert_close(prefilled, expected[:, : start + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.stack(stepped, 1), expected[:, start + 1 :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_recorded_step_of_fixed_shapes_replays_at_every_position(make_prior, grid, positions, window):
    """What a CUDA graph needs: no number of the step but the quantizer is known to the host."""
    prior = make_prior(grid=grid, positions=positions, window=window)
    sequence = torch.randint(0, 11, (3, *grid)).flatten(1)
    expected = prior(sequence.view(3, *grid), LABELS)
    decoder = CachedDecoder(prior, fixed_shapes=True)
    quantizers = grid[2]  # a step is recorded once for each
    decoder.prefill(prefix_of(prior), sequence[:, :0])
    recorded = [make_fx(lambda codes: decoder.step(codes))(sequence[:, i]) for i in range(quantizers)]
    decoder.prefill(prefix_of(prior), sequence[:, :0])
    replayed = [recorded[i % quantizers](sequence[:, i]) for i in range(11)]
    torch.testing.assert_close(torch.stack(replayed, 1), expected[:, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_rows_that_share_a_prompt_go_on_from_what_it_leaves_alone(make_prior, fixed_shapes, window):
    prior = make_prior(caption=5, window=window)
    prompts, codes = torch.randint(0, 7, (2, 5)), torch.randint(0, 11, (2, 3))
    rows = torch.tensor([1, 0, 1, 1])
    decoder, expected = CachedDecoder(prior, fixed_shapes), CachedDecoder(prior, fixed_shapes)
    logits = decoder.prefill(prompts, codes, rows)
    assert torch.equal(logits, expected.prefill(prompts, codes))
    for found, alone in zip(decoder.caches, expected.caches, strict=True):
        assert torch.equal(found, alone[rows])
    after = torch.randint(0, 11, (4, 6))
    expected.prefill(prompts[rows], codes[rows])
    for step in after.unbind(1):
        torch.testing.assert_close(decoder.step(step), expected.step(step), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("positions", POSITIONS)
def test_decoding_works_in_the_dtype_of_the_model(make_prior, dtype, positions, fixed_shapes):
    prior = make_prior(positions=positions).to(dtype)
    decoder = CachedDecoder(prior, fixed_shapes)
    options = SamplingOptions(guidance_scale=2.0)
    codes = generate(prior, SamplingRequest((3, 1, 4), LABELS, options), decoder=decoder).codes
    assert codes.shape == (3, 3, 4, 1)
    logits = decoder.prefill(prefix_of(prior), codes.flatten(1)[:, :-1])
    with torch.no_grad():
        expected = prior(codes, LABELS)
    tolerance = {torch.bfloat16: 0.2, torch.float16: 0.03, torch.float64: 1e-6}[dtype]
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0, check_dtype=True)


def test_a_copy_of_the_weights_does_not_follow_the_prior(make_prior):
    prior = make_prior()
    decoder = CachedDecoder(prior)
    none = torch.empty(3, 0, dtype=torch.long)
    before = decoder.prefill(prefix_of(prior), none)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.zero_()
    assert not decoder.matches(prior)
    assert torch.equal(decoder.prefill(prefix_of(prior), none), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda prior: torch.optim.SGD(prior.parameters(), lr=0.1).step(),
        lambda prior: prior.load_state_dict(prior.state_dict()),
        lambda prior: prior.to(torch.float64),
    ],
)
def test_every_way_to_change_weights_is_seen(make_prior, change):
    prior = make_prior()
    prior(torch.zeros(1, 3, 4, 1, dtype=torch.long)).sum().backward()
    decoder = CachedDecoder(prior)
    assert decoder.matches(prior)
    change(prior)
    assert not decoder.matches(prior)
