import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prior import (
    CachedDecoder,
    SamplingOptions,
    SamplingRequest,
    generate,
    generate_naive,
    sequence_logprobs,
    stream,
)
from prior.logits import process_logits
from prior.noise import GumbelNoise
from prior.sampling import _most_likely
from tests.prior.variants import GRIDS, POSITIONS

LABELS = torch.tensor([0, 2, 1])
SEEDS = (3, 1, 4)
CHOICES = {
    "greedy": SamplingOptions(do_sample=False),
    "sampled": SamplingOptions(),
    "greedy, guided": SamplingOptions(do_sample=False, guidance_scale=2.5),
    "sampled, guided, filtered": SamplingOptions(guidance_scale=2.5, temperature=1.3, top_k=8, top_p=0.95, min_p=0.02),
}


@pytest.mark.parametrize("prompt", [0, 1, 5, 12])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_the_cached_path_chooses_what_the_naive_one_does(make_prior, fixed_shapes, grid, positions, choice, prompt):
    prior = make_prior(grid=grid, positions=positions)
    request = SamplingRequest(SEEDS, LABELS, CHOICES[choice], torch.randint(0, 11, (3, prompt)))
    fast = generate(prior, request, decoder=CachedDecoder(prior, fixed_shapes))
    naive = generate_naive(prior, request)
    assert torch.equal(fast.codes, naive.codes)
    torch.testing.assert_close(fast.logprobs, naive.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_an_image_depends_on_neither_the_batch_nor_its_neighbours(make_prior, sampler):
    prior = make_prior()
    options = SamplingOptions(guidance_scale=2.0, top_p=0.95)
    together = sampler(prior, SamplingRequest(SEEDS, LABELS, options))
    for i, seed in enumerate(SEEDS):
        alone = sampler(prior, SamplingRequest((seed,), LABELS[i : i + 1], options))
        assert torch.equal(alone.codes[0], together.codes[i])


def test_other_seeds_give_other_images(make_prior):
    codes = generate(make_prior(), SamplingRequest(range(8))).codes.flatten(1)
    assert len(codes.unique(dim=0)) == 8


def test_the_global_random_state_plays_no_part(make_prior):
    prior = make_prior()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = generate(prior, SamplingRequest(SEEDS, LABELS))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(generate(prior, SamplingRequest(SEEDS, LABELS)).codes, first.codes)


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_guidance_one_equals_none(make_prior, sampler):
    prior = make_prior()
    without = sampler(prior, SamplingRequest(SEEDS, LABELS))
    near = sampler(
        prior, SamplingRequest(SEEDS, LABELS, SamplingOptions(guidance_scale=1 + 1e-6))
    )  # runs both branches
    assert torch.equal(near.codes, without.codes)
    assert torch.equal(
        sampler(prior, SamplingRequest(SEEDS, LABELS, SamplingOptions(guidance_scale=1.0))).codes, without.codes
    )


def test_guidance_zero_is_the_unconditional_model(make_prior):
    prior = make_prior()
    guided = generate(prior, SamplingRequest(SEEDS, LABELS, SamplingOptions(guidance_scale=0.0)))
    assert torch.equal(guided.codes, generate(prior, SamplingRequest(SEEDS)).codes)


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_prompt_and_labels_are_kept_and_never_changed(make_prior, sampler):
    prior = make_prior()
    prompt, labels = torch.randint(0, 11, (3, 5)), LABELS.clone()
    before = prompt.clone()
    generated = sampler(prior, SamplingRequest(SEEDS, labels, SamplingOptions(guidance_scale=2.0), prompt))
    generated.codes.zero_()
    assert torch.equal(prompt, before) and torch.equal(labels, LABELS)


def test_generation_from_its_own_prefix_completes_the_same_image(make_prior):
    prior = make_prior()
    whole = generate(prior, SamplingRequest(SEEDS, LABELS))
    prefix = whole.codes.flatten(1)[:, :7]
    assert torch.equal(generate(prior, SamplingRequest(SEEDS, LABELS, SamplingOptions(), prefix)).codes, whole.codes)


def scattered(codes, seed=0):
    """Codes (b, n), of which about a half, chosen for each image apart, are to be drawn."""
    chance = torch.rand(codes.shape, generator=torch.Generator().manual_seed(seed))
    return codes.masked_fill(chance < 0.5, -1)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_codes_that_are_kept_anywhere_stay_and_both_paths_agree(make_prior, fixed_shapes, grid, choice):
    prior = make_prior(grid=grid)
    kept = scattered(torch.randint(0, 11, (3, 12)))
    request = SamplingRequest(SEEDS, LABELS, CHOICES[choice], kept)
    fast = generate(prior, request, decoder=CachedDecoder(prior, fixed_shapes))
    assert torch.equal(fast.codes.flatten(1)[kept >= 0], kept[kept >= 0])
    assert torch.equal(fast.codes, generate_naive(prior, request).codes)
    torch.testing.assert_close(fast.logprobs, sequence_logprobs(prior, fast.codes, LABELS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_nothing_kept_is_a_new_image(make_prior, sampler):
    prior, nothing = make_prior(), torch.full((3, 12), -1)
    expected = sampler(prior, SamplingRequest(SEEDS, LABELS))
    assert torch.equal(sampler(prior, SamplingRequest(SEEDS, LABELS, kept_codes=nothing)).codes, expected.codes)


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_a_draw_does_not_see_the_codes_that_are_kept_after_it(make_prior, sampler):
    prior, kept = make_prior(), torch.full((3, 12), -1)
    kept[:, 6:] = torch.randint(0, 11, (3, 6))
    expected = sampler(prior, SamplingRequest(SEEDS, LABELS)).codes.flatten(1)
    assert torch.equal(
        sampler(prior, SamplingRequest(SEEDS, LABELS, kept_codes=kept)).codes.flatten(1)[:, :6], expected[:, :6]
    )


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_a_draw_sees_the_codes_that_are_kept_before_it(make_prior, sampler):
    prior = make_prior()
    whole = sampler(prior, SamplingRequest(SEEDS, LABELS)).codes
    kept = scattered(whole.flatten(1))
    assert torch.equal(sampler(prior, SamplingRequest(SEEDS, LABELS, kept_codes=kept)).codes, whole)


@pytest.mark.parametrize("choice", CHOICES)
def test_logprobs_are_the_likelihood_whatever_the_options(make_prior, choice):
    prior = make_prior()
    prompt = torch.randint(0, 11, (3, 2))
    generated = generate(prior, SamplingRequest(SEEDS, LABELS, CHOICES[choice], prompt))
    expected = sequence_logprobs(prior, generated.codes, LABELS)
    torch.testing.assert_close(generated.logprobs, expected, atol=1e-5, rtol=0)


FILTERS = {
    "none": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.3},
    "guidance": {"guidance_scale": 2.0},
    "all": {"guidance_scale": 1.5, "temperature": 1.4, "top_k": 2, "top_p": 0.9, "min_p": 0.1},
}


@torch.no_grad()
def exact_probabilities(prior, sequences, label, options):
    """Of whole sequences (n, m) under the options: the product over their positions."""
    codes, labels = sequences.view(-1, *prior.vocabulary.code_axes), torch.full((len(sequences),), label)
    branches = [prior(codes, labels), prior(codes)] if options.guided else [prior(codes, labels)]
    filtered = process_logits(branches[0].flatten(0, 1), options, *(branch.flatten(0, 1) for branch in branches[1:]))
    each = filtered.double().softmax(-1).gather(1, sequences.reshape(-1, 1))
    return each.view(sequences.shape).prod(1)


@pytest.mark.parametrize("given", FILTERS.values(), ids=FILTERS)
def test_samples_follow_the_exact_distribution_under_every_filter(make_prior, given):
    """Chi-square of 20,000 samples against all 81 sequences of a 2x2 grid with 3 codes."""
    prior, options = make_prior(grid=(2, 2, 1), num_codes=3, sharpen=1.0), SamplingOptions(**given)
    sequences = torch.cartesian_prod(*[torch.arange(3)] * 4)
    expected = exact_probabilities(prior, sequences, 1, options) * 20_000
    torch.testing.assert_close(expected.sum().item(), 20_000.0)
    labels = torch.ones(20_000, dtype=torch.long)
    codes = generate(prior, SamplingRequest(range(20_000), labels, options)).codes.flatten(1)
    observed = (codes @ torch.tensor([27, 9, 3, 1])).bincount(minlength=81).double()
    assert observed[expected == 0].sum() == 0
    alone = expected >= 5
    alone[expected.argmax()] = False  # the rare ones are counted with the most likely one
    expected = torch.cat([expected[alone], expected[~alone].sum()[None]])
    observed = torch.cat([observed[alone], observed[~alone].sum()[None]])
    assert len(expected) > 5
    assert ((observed - expected) ** 2 / expected).sum() < chi_square_quantile(len(expected) - 1)


def chi_square_quantile(freedom, normal_quantile=3.09):
    """The 99.9 % quantile, to 1 % (Wilson and Hilferty 1931)."""
    return freedom * (1 - 2 / (9 * freedom) + normal_quantile * math.sqrt(2 / (9 * freedom))) ** 3


def test_greedy_takes_the_most_likely_code_at_each_place(make_prior):
    prior = make_prior()
    generated = generate(prior, SamplingRequest(SEEDS, LABELS, SamplingOptions(do_sample=False)))
    assert torch.equal(prior(generated.codes, LABELS).argmax(-1), generated.codes.flatten(1))


def test_only_codes_that_survive_the_filters_are_drawn(make_prior):
    prior = make_prior(sharpen=0.5)
    generated = generate(prior, SamplingRequest(range(50), None, SamplingOptions(top_k=2)))
    top = prior(generated.codes).topk(2).indices
    assert (top == generated.codes.flatten(1)[..., None]).any(-1).all()


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_the_callback_sees_each_place_once_in_order(make_prior, sampler):
    steps = []
    generated = sampler(make_prior(), SamplingRequest(SEEDS, LABELS, SamplingOptions()), callback=steps.append)
    assert [step.position for step in steps] == list(range(12))
    assert torch.equal(torch.stack([step.codes for step in steps], 1), generated.codes.flatten(1))


def test_a_stream_can_be_left_early_and_leaves_no_mode_behind(make_prior):
    prior = make_prior()
    steps = stream(prior, SamplingRequest(SEEDS, LABELS))
    first = list(itertools.islice(steps, 3))
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert torch.equal(first[2].codes, generate(prior, SamplingRequest(SEEDS, LABELS)).codes.flatten(1)[:, 2])


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_training_mode_changes_no_sample_and_is_kept(make_prior, sampler):
    prior = make_prior(dropout=0.5, condition_dropout=1.0)
    expected = sampler(prior, SamplingRequest(SEEDS, LABELS))
    assert torch.equal(sampler(prior.train(), SamplingRequest(SEEDS, LABELS)).codes, expected.codes)
    assert prior.training


def test_samples_can_be_trained_on(make_prior):
    prior = make_prior().train()
    prior(generate(prior, SamplingRequest(SEEDS, LABELS)).codes, LABELS).mean().backward()
    assert prior.network.to_logits.weight.grad is not None


def test_autocast_does_not_reach_the_decode_path(make_prior):
    prior = make_prior()
    expected = generate(prior, SamplingRequest(SEEDS, LABELS))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generate(prior, SamplingRequest(SEEDS, LABELS)).logprobs, expected.logprobs)


@pytest.mark.parametrize(
    ("labels", "options", "seeds", "prompt", "message"),
    [
        (None, SamplingOptions(guidance_scale=2.0), (0,), None, r"guidance_scale=2.0 needs a condition"),
        (None, SamplingOptions(), (), None, "seeds is empty"),
        (None, SamplingOptions(), (-1,), None, r"seeds must lie in \[0, 2\^64\), found -1"),
        (None, SamplingOptions(), (10**23,), None, r"seeds must lie in \[0, 2\^64\), found 100000"),
        (LABELS, SamplingOptions(), (0,), None, "label: found 3 rows for 1 images"),
        (None, SamplingOptions(), (0,), torch.zeros(2, 1, dtype=torch.long), r"kept_codes has the shape \(2, 1\)"),
        (None, SamplingOptions(), (0,), torch.zeros(1, 13, dtype=torch.long), r"expected \(1, at most 12\)"),
        (None, SamplingOptions(), (0,), torch.full((1, 1), 11), r"kept_codes must lie in \[0, 11\), found 11"),
        (None, SamplingOptions(), (0,), torch.full((1, 1), -2), r"kept_codes must lie in \[0, 11\), found -2"),
    ],
)
@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_arguments_that_do_not_fit_are_refused(make_prior, sampler, labels, options, seeds, prompt, message):
    with pytest.raises(ValueError, match=message):
        sampler(make_prior(), SamplingRequest(seeds, labels, options, prompt))


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_guidance_is_refused_where_the_null_condition_was_never_trained(make_prior, sampler):
    prior = make_prior(condition_dropout=0.0)
    assert not prior.can_be_guided
    with pytest.raises(ValueError, match=r"guidance_scale=2.0 needs a prior .* condition_dropout=0.0"):
        sampler(prior, SamplingRequest(SEEDS, LABELS, SamplingOptions(guidance_scale=2.0)))
    sampler(prior, SamplingRequest(SEEDS, LABELS))


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_a_null_condition_that_was_never_trained_is_refused(make_prior, sampler):
    with pytest.raises(ValueError, match="needs a condition"):
        sampler(make_prior(condition_dropout=0.0), SamplingRequest(SEEDS))


def test_streams_that_take_turns_on_one_decoder_are_refused(make_prior):
    prior = make_prior()
    decoder = CachedDecoder(prior)
    first, second = (stream(prior, SamplingRequest(SEEDS, LABELS), decoder=decoder) for _ in range(2))
    for each in (first, first, second, second):
        next(each)
    with pytest.raises(ValueError, match="another batch"):
        next(first)


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_logits_that_are_not_finite_are_refused(make_prior, sampler):
    prior = make_prior()
    prior.network.to_logits.weight.data[7] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        sampler(prior, SamplingRequest(SEEDS))


def test_a_code_of_probability_zero_is_never_chosen():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).repeat(20_000, 1)
    chosen = _most_likely(logits, GumbelNoise(range(20_000), 1, 5, logits.device).at(0))
    assert chosen.unique().tolist() == [1, 3]


def test_large_logits_leave_the_noise_its_digits():
    noise = GumbelNoise(range(1000), 1, 3, torch.device("cpu")).at(0)
    near = torch.tensor([0.0, 0.5, -0.5]).repeat(1000, 1)
    assert torch.equal(_most_likely(near + 2.0**20, noise), _most_likely(near, noise))


def test_one_decoder_serves_batches_of_all_sizes(make_prior):
    prior = make_prior()
    decoder = CachedDecoder(prior)
    for size in (3, 1, 2, 3):
        request = SamplingRequest(SEEDS[:size], LABELS[:size])
        assert torch.equal(generate(prior, request, decoder=decoder).codes, generate_naive(prior, request).codes)


def test_a_decoder_of_older_weights_is_refused(make_prior):
    prior = make_prior()
    decoder = CachedDecoder(prior)
    generate(prior, SamplingRequest(SEEDS), decoder=decoder)
    with torch.no_grad():
        prior.network.to_logits.weight.add_(1)
    with pytest.raises(ValueError, match="its weights have changed"):
        generate(prior, SamplingRequest(SEEDS), decoder=decoder)


class _HostCopies(TorchDispatchMode):
    """Notes each operation by which a number reaches Python."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_no_step_waits_for_the_device(make_prior, fixed_shapes, choice):
    prior = make_prior()
    decoder = CachedDecoder(prior, fixed_shapes)
    steps = stream(prior, SamplingRequest(SEEDS, LABELS, CHOICES[choice]), decoder=decoder)
    next(steps)
    with _HostCopies() as copies:
        assert len(list(steps)) == 11
    assert copies.found == []


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_captions_are_conditions_too(make_prior, fixed_shapes, positions, window):
    prior = make_prior(caption=5, grid=(2, 3, 2), positions=positions, window=window)
    captions = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(0))
    request = SamplingRequest(SEEDS, captions, SamplingOptions(guidance_scale=2.0), torch.randint(0, 11, (3, 2)))
    fast = generate(prior, request, decoder=CachedDecoder(prior, fixed_shapes))
    assert torch.equal(fast.codes, generate_naive(prior, request).codes)
    torch.testing.assert_close(fast.logprobs, sequence_logprobs(prior, fast.codes, captions), atol=1e-5, rtol=0)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_candidates_share_the_pass_of_their_prompt_and_equal_separate_calls(
    make_prior, monkeypatch, fixed_shapes, choice
):
    prior = make_prior(caption=5)
    captions = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(0))[[0, 1, 0, 0, 1]]
    decoder, passes = CachedDecoder(prior, fixed_shapes), []
    advance = decoder._advance
    monkeypatch.setattr(decoder, "_advance", lambda x, *rest: (passes.append(len(x)), advance(x, *rest))[1])
    drawn = generate(prior, SamplingRequest(range(5), captions, CHOICES[choice]), decoder=decoder)
    guided = CHOICES[choice].guided
    assert passes == [(3 if guided else 2) * 5] + [(10 if guided else 5)] * 11  # two captions, and the null caption
    for seed in range(5):
        alone = generate(prior, SamplingRequest([seed], captions[seed : seed + 1], CHOICES[choice]), decoder=decoder)
        assert torch.equal(alone.codes[0], drawn.codes[seed])
        torch.testing.assert_close(alone.logprobs[0], drawn.logprobs[seed], atol=1e-5, rtol=0)


def test_images_of_one_caption_with_other_first_codes_have_a_pass_each(make_prior):
    prior = make_prior(caption=5)
    captions, first = torch.zeros(3, 5, dtype=torch.long), torch.tensor([[1, 2], [3, 4], [1, 2]])
    request = SamplingRequest(range(3), captions, SamplingOptions(), first)
    drawn = generate(prior, request)
    assert torch.equal(drawn.codes.flatten(1)[:, :2], first)
    assert torch.equal(drawn.codes, generate_naive(prior, request).codes)
