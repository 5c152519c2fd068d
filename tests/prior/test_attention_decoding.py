"""Decoding under the masks of layers: the cached path agrees with the modules and with the naive one."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from prior import (
    CachedDecoder,
    SamplingOptions,
    SamplingRequest,
    cached_decoder,
    generate,
    generate_naive,
    sequence_logprobs,
)
from prior.attention import (
    ColumnAttention,
    PatternAttention,
    RowAttention,
)
from tests.prior.variants import ATTENTIONS, GRIDS, LAYER_ATTENTIONS, POSITIONS

LABELS = torch.tensor([0, 2, 1])
CODES = {
    "one quantizer": [(11, (3, 4, 1))],
    "two quantizers": [(11, (3, 3, 2))],
    "one cell": [(11, (1, 1, 1))],
    "one column": [(11, (5, 1, 1))],
    "one row": [(11, (1, 5, 2))],
    "large": [(11, (7, 6, 1))],
    "levels": [(5, (2, 2, 1)), (11, (3, 3, 2))],
}
every_attention = pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
every_layer = pytest.mark.parametrize("layer", LAYER_ATTENTIONS.values(), ids=LAYER_ATTENTIONS)
gathering = pytest.mark.parametrize("few", [0, 1], ids=["masked", "gathered"])


@gathering
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("grid", GRIDS)
@every_attention
def test_decoded_logits_are_those_of_the_modules(make_prior, monkeypatch, attention, grid, positions, few):
    monkeypatch.setattr(cached_decoder, "FEW", few)
    prior = make_prior(grid=grid, positions=positions, attention=attention, caption=3, depth=3)
    captions, sequence = torch.randint(0, 7, (3, 3)), torch.randint(0, 11, (3, 12))
    expected = prior(sequence.view(3, *grid), captions)
    for decoder in (CachedDecoder(prior, False), CachedDecoder(prior, True)):
        assert all((keys.few is not None) == bool(few) for keys in decoder.keys if keys is not None)
        for start in (4, 0):
            prefilled = decoder.prefill(captions, sequence[:, :start])
            stepped = [decoder.step(sequence[:, i]) for i in range(start, 11)]
            torch.testing.assert_close(prefilled, expected[:, : start + 1], atol=1e-5, rtol=0)
            torch.testing.assert_close(torch.stack(stepped, 1), expected[:, start + 1 :], atol=1e-5, rtol=0)


CHOICES = {
    "greedy": SamplingOptions(do_sample=False),
    "sampled": SamplingOptions(),
    "greedy, guided": SamplingOptions(do_sample=False, guidance_scale=2.5),
    "sampled, guided, filtered": SamplingOptions(guidance_scale=2.5, temperature=1.3, top_k=8, top_p=0.95, min_p=0.02),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("levels", [CODES["two quantizers"], CODES["levels"]], ids=["one level", "levels"])
@every_attention
def test_the_cached_path_draws_what_the_naive_one_does(make_prior, monkeypatch, attention, levels, choice):
    prior = make_prior(levels=levels, attention=attention, depth=3)
    request = SamplingRequest((3, 1, 4), LABELS, CHOICES[choice], torch.zeros(3, 5, dtype=torch.long))
    naive = generate_naive(prior, request)
    torch.testing.assert_close(naive.logprobs, sequence_logprobs(prior, naive.codes, LABELS), atol=1e-5, rtol=0)
    for fixed_shapes, few in ((False, 0), (False, 1), (True, 1)):
        monkeypatch.setattr(cached_decoder, "FEW", few)
        fast = generate(prior, request, decoder=CachedDecoder(prior, fixed_shapes))
        assert torch.equal(fast.codes, naive.codes)
        torch.testing.assert_close(fast.logprobs, naive.logprobs, atol=1e-5, rtol=0)


CAPTIONS = torch.tensor([[1, 0, 7, 3], [5, 2, -1, -1], [-1, -1, -1, -1]])
"""A whole one, a short one, and the null caption."""


@pytest.mark.parametrize("choice", CHOICES)
@every_attention
def test_the_cached_path_draws_what_the_naive_one_does_for_captions(make_prior, attention, choice):
    prior = make_prior(grid=(3, 3, 1), attention=attention, caption=4, depth=3)
    request = SamplingRequest((3, 1, 4), CAPTIONS, CHOICES[choice], torch.zeros(3, 2, dtype=torch.long))
    naive = generate_naive(prior, request)
    torch.testing.assert_close(naive.logprobs, sequence_logprobs(prior, naive.codes, CAPTIONS), atol=1e-5, rtol=0)
    for fixed_shapes in (False, True):
        fast = generate(prior, request, decoder=CachedDecoder(prior, fixed_shapes))
        assert torch.equal(fast.codes, naive.codes)
        torch.testing.assert_close(fast.logprobs, naive.logprobs, atol=1e-5, rtol=0)


@gathering
@every_attention
def test_a_recorded_step_of_fixed_shapes_replays_at_every_position(make_prior, monkeypatch, attention, few):
    monkeypatch.setattr(cached_decoder, "FEW", few)
    prior = make_prior(attention=attention, depth=3)
    sequence, null = torch.randint(0, 11, (3, 12)), torch.full((3, 1), 3)
    expected = prior(sequence.view(3, 3, 4, 1))
    decoder = CachedDecoder(prior, fixed_shapes=True)
    decoder.prefill(null, sequence[:, :0])
    recorded = make_fx(lambda codes: decoder.step(codes))(sequence[:, 0])
    decoder.prefill(null, sequence[:, :0])
    replayed = [recorded(sequence[:, i]) for i in range(11)]
    torch.testing.assert_close(torch.stack(replayed, 1), expected[:, 1:], atol=1e-5, rtol=0)


def test_few_keys_are_gathered_where_that_is_less_than_to_read_all(make_prior):
    prior = make_prior(grid=(9, 8, 1), attention=PatternAttention(layers=(ColumnAttention(), RowAttention())))
    wide = make_prior(grid=(4, 4, 1), attention=ColumnAttention())
    assert [keys.few is not None for keys in CachedDecoder(prior).keys] == [True, True]
    assert [keys.few is not None for keys in CachedDecoder(wide).keys] == [False]
