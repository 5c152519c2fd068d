import math

import pytest
import torch
from pydantic import ValidationError

from prior import SamplingOptions, process_logits
from prior.logits import filter_min_p, filter_top_k, filter_top_p, guide
from tests.prior.variants import FLOAT_OPTIONS


def random_logits(rows=64, codes=17):
    return torch.randn(rows, codes, generator=torch.Generator().manual_seed(0)) * 2


def kept(logits):
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


@pytest.mark.parametrize("top_k", [1, 3, 17, 40])
def test_top_k_keeps_the_k_largest(top_k):
    logits = random_logits()
    expected = [set(sorted(range(17), key=lambda i: -row[i])[:top_k]) for row in logits.tolist()]
    assert kept(filter_top_k(logits, top_k)) == expected


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_top_k_keeps_the_smaller_codes_among_equals(top_k):
    assert kept(filter_top_k(torch.tensor([[0.0, 1.0, 2.0, 1.0, 1.0]]), top_k)) == [set([2, 1, 3][:top_k])]


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_fewest_codes_that_reach_the_mass(top_p):
    logits = random_logits()
    expected = []
    for row in logits.double().softmax(-1).tolist():
        chosen, mass = set(), 0.0
        for index in sorted(range(17), key=lambda i: -row[i]):
            if mass < top_p:
                chosen.add(index)
                mass += row[index]
        expected.append(chosen)
    assert kept(filter_top_p(logits, top_p)) == expected


def test_top_p_keeps_the_code_that_crosses_the_threshold():
    assert kept(filter_top_p(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.6)) == [{0, 1}]


def test_top_p_breaks_ties_by_the_smaller_code():
    assert kept(filter_top_p(torch.zeros(1, 4), 0.5)) == [{0, 1}]


@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.5, 1.0])
def test_min_p_is_relative_to_the_most_likely_code(min_p):
    logits = random_logits()
    expected = [{i for i, p in enumerate(row) if p >= min_p * max(row)} for row in logits.double().softmax(-1).tolist()]
    assert kept(filter_min_p(logits, min_p)) == expected


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_goes_from_unconditional_through_conditional(scale):
    conditional, unconditional = random_logits().chunk(2)
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, scale), expected)


def test_guidance_one_is_none():
    conditional, unconditional = random_logits().chunk(2)
    options = SamplingOptions(temperature=0.7, top_k=5, guidance_scale=1.0)
    assert torch.equal(process_logits(conditional, options, unconditional), process_logits(conditional, options))


def test_the_order_is_guidance_temperature_top_k_top_p_min_p():
    conditional, unconditional = random_logits().chunk(2)
    options = SamplingOptions(guidance_scale=2.5, temperature=1.7, top_k=9, top_p=0.8, min_p=0.1)
    expected = guide(conditional, unconditional, 2.5) / 1.7
    expected = filter_min_p(filter_top_p(filter_top_k(expected, 9), 0.8), 0.1)
    found = process_logits(conditional, options, unconditional)
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1))


def test_top_p_measures_its_mass_inside_the_top_k():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()  # within the top 2: 4/7 and 3/7
    assert kept(process_logits(logits, SamplingOptions(top_k=2, top_p=0.5))) == [{0}]
    assert kept(process_logits(logits, SamplingOptions(top_p=0.5))) == [{0, 1}]


def test_top_p_sees_the_temperature():
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    assert kept(process_logits(logits, SamplingOptions(top_p=0.55))) == [{0}]
    assert kept(process_logits(logits, SamplingOptions(top_p=0.55, temperature=5.0))) == [{0, 1}]


def test_no_option_changes_its_inputs():
    conditional, unconditional = random_logits().chunk(2)
    before = conditional.clone(), unconditional.clone()
    process_logits(
        conditional, SamplingOptions(guidance_scale=2, temperature=2, top_k=4, top_p=0.5, min_p=0.2), unconditional
    )
    assert torch.equal(conditional, before[0]) and torch.equal(unconditional, before[1])


def test_the_most_likely_code_always_stays():
    logits = torch.zeros(1, 5) - torch.tensor([[0.0, 200.0, 200.0, 200.0, 200.0]])
    options = SamplingOptions(top_k=1, top_p=1e-12, min_p=1.0)
    assert kept(process_logits(logits, options)) == [{0}]


@pytest.mark.parametrize(("name", "value"), [("top_p", 0.9), ("top_k", 5), ("min_p", 0.1), ("temperature", 0.5)])
def test_sampling_options_need_sampling(name, value):
    with pytest.raises(ValidationError, match=f"{name} needs do_sample=True, got {name}={value}"):
        SamplingOptions(do_sample=False, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("temperature", math.inf), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1)],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        SamplingOptions(**{name: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, 1e-40, 1e-320, -1.0, -1e-320])
@pytest.mark.parametrize("name", FLOAT_OPTIONS)
def test_numbers_that_float32_cannot_hold_are_refused_by_name(name, value):
    with pytest.raises(ValidationError) as refusal:
        SamplingOptions(**{name: value})
    (detail,) = refusal.value.errors()
    assert name in (*detail["loc"], *detail["msg"].split(":")[0].split(", "))


@pytest.mark.parametrize("name", FLOAT_OPTIONS)
def test_every_number_of_the_options_changes_the_distribution(name):
    conditional, unconditional = random_logits().chunk(2)
    plain, changed = (
        process_logits(conditional, options, unconditional).softmax(-1)
        for options in (SamplingOptions(), SamplingOptions(**{name: 0.3}))
    )
    assert (plain - changed).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.2e-38, 1e-20, 1e-5, 3e38])
@pytest.mark.parametrize("guidance", [1.0, 0.0, 1e6])
def test_no_temperature_or_guidance_gives_anything_but_a_distribution(guidance, temperature, dtype):
    conditional, unconditional = (40 * random_logits()).to(dtype).chunk(2)
    options = SamplingOptions(temperature=temperature, guidance_scale=guidance, top_p=0.9, top_k=5, min_p=1e-3)
    probabilities = process_logits(conditional, options, unconditional).softmax(-1)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(32))
    guided = guide(conditional.float(), unconditional.float(), guidance)
    if temperature < 1e-4:
        assert torch.equal(guided.gather(-1, probabilities.argmax(-1, True))[:, 0], guided.amax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{"top_p": 0.95}, {"top_p": 0.5}, {"top_k": 1}, {"top_k": 40}, {"min_p": 0.01}, {"temperature": 0.7}]
)
def test_half_precision_logits_are_filtered_in_float32(options, dtype):
    logits = (random_logits(codes=1024) / 2).to(dtype)
    chosen = SamplingOptions(**options)
    assert torch.equal(process_logits(logits, chosen), process_logits(logits.float(), chosen))
    if "top_p" in options:
        mass = logits.double().softmax(-1).where(process_logits(logits, chosen).isfinite(), 0).sum(-1)
        assert mass.min() >= options["top_p"] - 1e-6
    if "top_k" in options:
        assert [len(row) for row in kept(process_logits(logits, chosen))] == [options["top_k"]] * 64


def test_guidance_needs_the_unconditional_logits():
    with pytest.raises(ValueError, match=r"guidance_scale=2.0 needs the unconditional logits"):
        process_logits(random_logits(), SamplingOptions(guidance_scale=2.0))
