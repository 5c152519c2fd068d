"""Captions in the stream of the prior: ids, pads, the text's logits and loss, and what a prior of labels keeps."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from prior import (
    PriorConfig,
    PriorPhase,
    SamplingOptions,
    SamplingRequest,
    Segment,
    TokenPrior,
    TransformerConfig,
    Vocabulary,
    codes_to_tokens,
    generate,
    generate_naive,
    sequence_bits,
    sequence_logprobs,
)
from prior.attention import Dalle1Attention
from prior.conditioning import condition_tokens, drop_condition

CPU = torch.device("cpu")
CAPTIONS = torch.tensor([[1, 0, 7, 3], [5, 2, -1, -1], [-1, -1, -1, -1]])
"""A whole one, a short one, and the null caption."""
LEVELS = {"one level": [(11, (3, 4, 1))], "levels": [(5, (2, 2, 1)), (7, (2, 3, 2))]}
every_vocabulary = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)


def random_codes(vocabulary, n=3):
    sizes = torch.tensor(vocabulary.code_sizes)
    return (torch.rand(n, vocabulary.code_length) * sizes).long().view(n, *vocabulary.code_axes)


def allowed_ids(vocabulary) -> list[set[int]]:
    """What each position may hold, the pads of a caption included."""
    pads = [{pad} for pad in vocabulary.null_condition] + [set()] * vocabulary.code_length
    return [set(values) | pad for values, pad in zip(vocabulary.id_ranges, pads, strict=True)]


@every_vocabulary
def test_ids_of_words_pads_and_codes_tile_the_vocabulary(levels):
    vocabulary = Vocabulary.of_caption_and_levels(levels, num_words=8, caption_length=4)
    words, pads, codes = set(range(8)), set(range(8, 12)), set(range(12, vocabulary.size))
    allowed = allowed_ids(vocabulary)
    assert set().union(*allowed) == words | pads | codes
    assert allowed[:4] == [words | {8 + position} for position in range(4)]  # each position has a pad of its own
    assert all(ids <= codes for ids in allowed[4:])
    assert (vocabulary.conditional, vocabulary.num_classes, vocabulary.condition.name) == (True, None, "caption")


def test_absent_words_become_the_pads_of_their_positions():
    vocabulary = Vocabulary.of_caption_and_levels(LEVELS["levels"], num_words=8, caption_length=4)
    tokens = condition_tokens(vocabulary, CAPTIONS, 3, CPU)
    assert tokens.tolist() == [[1, 0, 7, 3], [5, 2, 10, 11], [8, 9, 10, 11]]
    assert torch.equal(condition_tokens(vocabulary, None, 1, CPU), tokens[2:])
    assert torch.equal(drop_condition(tokens, vocabulary, 1.0), tokens[2:].expand(3, 4))
    assert CAPTIONS[1].tolist() == [5, 2, -1, -1]  # the captions themselves are left as they were


@pytest.mark.parametrize("word", [-2, 8])
def test_a_word_out_of_range_is_refused(word):
    vocabulary = Vocabulary.of_caption_and_levels(LEVELS["levels"], num_words=8, caption_length=2)
    with pytest.raises(ValueError, match=rf"caption must lie in \[0, 8\), found {word}"):
        condition_tokens(vocabulary, torch.tensor([[0, word]]), 1, CPU)


def test_codes_have_no_pads():
    with pytest.raises(ValidationError, match="codes have no pads, got them in codes"):
        Vocabulary(segments=(Segment(name="label", size=1), Segment(name="codes", size=4, shape=(2, 2), pads=True)))


@every_vocabulary
def test_a_position_gives_all_its_probability_to_ids_of_its_own_kind(make_prior, levels):
    """As if every id had a logit at every position, and those that it may not take were minus infinity."""
    prior = make_prior(levels=levels, caption=4)
    vocabulary, codes = prior.vocabulary, random_codes(prior.vocabulary)
    tokens = torch.cat([prior.prefix(CAPTIONS, 3, CPU), codes_to_tokens(codes, vocabulary)[:, :-1]], dim=1)
    text, image = prior.stream_logits(prior.prefix(CAPTIONS, 3, CPU), codes)
    of_all_ids = prior.network.to_logits(prior.network(tokens))
    assert of_all_ids.shape[-1] == vocabulary.size
    for position, ids in enumerate(allowed_ids(vocabulary)[1:]):
        expected = of_all_ids[:, position, sorted(ids)].log_softmax(-1)
        found = text[:, position] if position < 3 else image[:, position - 3]
        torch.testing.assert_close(found.log_softmax(-1)[:, : len(ids)], expected, atol=1e-5, rtol=0)
        assert (found[:, len(ids) :] == -math.inf).all()


@every_vocabulary
def test_the_stream_gives_the_codes_the_logits_of_a_pass_without_text(make_prior, levels):
    prior = make_prior(levels=levels, caption=4)
    codes = random_codes(prior.vocabulary)
    text, image = prior.stream_logits(prior.prefix(CAPTIONS, 3, CPU), codes)
    assert text.shape == (3, 3, 9)
    torch.testing.assert_close(image, prior(codes, CAPTIONS))


@torch.no_grad()
def by_hand(prior, codes, words):
    """Sums of the negative log-probabilities of positions: of words, of pads, and of codes; each beside its number."""
    prefix = prior.prefix(words, len(words), CPU)
    text, image = prior.stream_logits(prefix, codes)
    sums = {"words": [], "pads": [], "codes": []}
    for row, caption in enumerate(words.tolist()):
        for position, word in enumerate(caption[1:]):  # the first is given
            logits = text[row, position].double()
            if not prior.config.predict_pads:
                logits = logits[:8]
            if word >= 0:
                sums["words"].append(logits.logsumexp(0) - logits[word])
            elif prior.config.predict_pads:
                sums["pads"].append(logits.logsumexp(0) - logits[8])
        for logits, code in zip(image[row].double(), codes[row].flatten(), strict=True):
            sums["codes"].append(logits.logsumexp(0) - logits[code])
    return {name: (sum(values), len(values)) for name, values in sums.items()}


@pytest.mark.parametrize("text_weight", [1 / 8, 0.5])
@pytest.mark.parametrize("predict_pads", [True, False])
@every_vocabulary
def test_each_loss_is_normalised_by_its_own_count_and_weighted(make_prior, levels, predict_pads, text_weight):
    prior = make_prior(levels=levels, caption=4, text_weight=text_weight, predict_pads=predict_pads)
    codes = random_codes(prior.vocabulary)
    loss, metrics = PriorPhase(prior)({"codes": codes, "caption": CAPTIONS})
    sums = by_hand(prior, codes, CAPTIONS)
    assert (sums["words"][1], sums["pads"][1], sums["codes"][1]) == (4, 5 if predict_pads else 0, codes.numel())
    text = (sums["words"][0] + sums["pads"][0]) / (sums["words"][1] + sums["pads"][1])
    image = sums["codes"][0] / sums["codes"][1]
    assert loss.item() == pytest.approx(float(text_weight * text + (1 - text_weight) * image), rel=1e-5)
    assert metrics["loss"] == loss and metrics["text_loss"].item() == pytest.approx(float(text), rel=1e-5)
    assert metrics["bits_per_token"].item() == pytest.approx(float(image) / math.log(2), rel=1e-5)


def test_the_weights_of_dalle_1_are_the_default():
    config = PriorConfig(vocabulary=Vocabulary.of_caption_and_levels(LEVELS["levels"], 8, 4))
    assert (config.text_weight, config.predict_pads) == (1 / 8, True)


def test_without_a_text_weight_the_text_is_not_predicted(make_prior, monkeypatch):
    prior = make_prior(caption=4, text_weight=0.0)
    monkeypatch.setattr(prior.network, "text_logits", None)
    codes = random_codes(prior.vocabulary)
    loss, metrics = PriorPhase(prior)({"codes": codes, "caption": CAPTIONS})
    torch.testing.assert_close(loss, -sequence_logprobs(prior, codes, CAPTIONS).mean())
    assert metrics.keys() == {"loss", "bits_per_token"}


def test_a_batch_without_words_has_a_text_loss_of_zero_and_finite_gradients(make_prior):
    prior = make_prior(caption=4, predict_pads=False)
    loss, metrics = PriorPhase(prior)({"codes": random_codes(prior.vocabulary), "caption": CAPTIONS[2:].expand(3, 4)})
    loss.backward()
    assert metrics["text_loss"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prior.parameters())


def test_a_dropped_caption_is_predicted_as_the_null_caption(make_prior):
    prior = make_prior(caption=4, condition_dropout=1.0)
    codes = random_codes(prior.vocabulary)
    dropped, _ = PriorPhase(prior.train())({"codes": codes, "caption": CAPTIONS})
    null, _ = PriorPhase(prior.eval())({"codes": codes, "caption": torch.full((3, 4), -1)})
    torch.testing.assert_close(dropped, null)


def test_a_caption_of_one_word_leaves_nothing_to_predict(make_prior):
    prior = make_prior(caption=1)
    codes = random_codes(prior.vocabulary)
    loss, _ = PriorPhase(prior)({"codes": codes, "caption": CAPTIONS[:, :1]})
    torch.testing.assert_close(loss, -sequence_logprobs(prior, codes, CAPTIONS[:, :1]).mean())


@pytest.mark.parametrize("predict_pads", [True, False])
def test_the_loss_trains_the_words_the_pads_and_the_codes_that_it_reads(make_prior, predict_pads):
    prior = make_prior(caption=4, predict_pads=predict_pads)
    codes = random_codes(prior.vocabulary)
    PriorPhase(prior)({"codes": codes[:2], "caption": CAPTIONS[:2]})[0].backward()
    read = prior.network.token_embedding.weight.grad.abs().sum(1) > 0
    tokens = torch.cat([prior.prefix(CAPTIONS[:2], 2, CPU), codes_to_tokens(codes[:2], prior.vocabulary)[:, :-1]], 1)
    assert read.nonzero().flatten().tolist() == tokens.unique().tolist()
    predicted = prior.network.to_logits.weight.grad.abs().sum(1) > 0
    assert predicted[:8].all() and predicted[12:].all()
    assert predicted[8:12].tolist() == [False, *[predict_pads] * 3]  # the first position is given


def test_the_place_of_a_word_has_a_vector_and_that_of_a_code_the_sum_of_row_and_column(make_prior):
    prior = make_prior(levels=[(5, (2, 3, 1)), (7, (3, 2, 2))], caption=4)
    caption, coarse, fine = prior.network.positions.segments
    table = iter(prior.network.positions.table())
    for position in range(1, 4):  # input i predicts position i + 1
        assert torch.equal(next(table), caption[0].weight[position])
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(next(table), coarse[0].weight[row] + coarse[1].weight[column])
    for row in range(3):
        for column in range(2):
            for quantizer in range(2):
                expected = fine[0].weight[row] + fine[1].weight[column] + fine[2].weight[quantizer]
                torch.testing.assert_close(next(table), expected)
    assert next(table, None) is None


def test_given_a_caption_or_none_the_probabilities_of_all_images_sum_to_one(make_prior):
    prior = make_prior(grid=(2, 2, 1), num_codes=3, caption=4)
    images = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2, 1)
    for captions in (CAPTIONS[:1].expand(81, 4), CAPTIONS[1:2].expand(81, 4), None):
        probabilities = sequence_logprobs(prior, images, captions).sum(-1).exp()
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)


def test_bits_without_the_caption_are_those_of_the_null_caption(make_prior):
    prior = make_prior(caption=4)
    codes = random_codes(prior.vocabulary)
    without = sequence_bits(prior, codes)
    assert torch.equal(without, sequence_bits(prior, codes, torch.full((3, 4), -1)))
    given = sequence_bits(prior, codes, CAPTIONS)
    assert given[2] == pytest.approx(without[2].item()) and (given[:2] != without[:2]).all()


def test_it_learns_captions_and_images_that_follow_from_them(make_prior):
    prior = make_prior(grid=(2, 2, 1), num_codes=5, caption=3, sharpen=1.0).train()
    phase, words = PriorPhase(prior), torch.arange(4)
    captions = torch.stack([words, words + 4, torch.full((4,), -1)], dim=1)  # the first word tells the second
    batch = {"codes": ((words[:, None] + torch.arange(4) ** 2) % 5).view(4, 2, 2, 1), "caption": captions}
    optimizer = torch.optim.AdamW(phase.parameters(), lr=3e-3)
    for step in range(100):
        loss, _ = phase(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _, metrics = phase.eval()(batch)
    assert metrics["bits_per_token"] < 0.2 and metrics["text_loss"] < 0.2
    assert (sequence_bits(prior, batch["codes"]) > sequence_bits(prior, batch["codes"], captions)).all()


@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_captions_are_never_changed_by_sampling(make_prior, sampler):
    prior, captions = make_prior(caption=4), CAPTIONS.clone()
    request = SamplingRequest((3, 1, 4), captions, SamplingOptions(guidance_scale=2.0))
    sampler(prior, request).codes.zero_()
    assert torch.equal(captions, CAPTIONS)


@pytest.mark.parametrize(("scale", "captions"), [(1 + 1e-6, CAPTIONS), (0.0, None)], ids=["one", "zero"])
@pytest.mark.parametrize("sampler", [generate, generate_naive])
def test_guidance_of_one_is_the_caption_and_of_zero_the_null_caption(make_prior, sampler, scale, captions):
    prior = make_prior(caption=4)
    guided = sampler(prior, SamplingRequest((3, 1, 4), CAPTIONS, SamplingOptions(guidance_scale=scale)))
    assert torch.equal(guided.codes, sampler(prior, SamplingRequest((3, 1, 4), captions)).codes)


def test_logits_of_words_cost_the_positions_of_words_alone(make_prior):
    """The loss of the text adds one product: of the states before a word with the words."""
    batch = {"codes": torch.zeros(5, 3, 4, 1, dtype=torch.long), "caption": CAPTIONS[:1].expand(5, 4)}
    flops = []
    for text_weight in (1 / 8, 0.0):
        prior = make_prior(caption=4, text_weight=text_weight, dim=32)
        with FlopCounterMode(display=False) as counter:
            PriorPhase(prior)(batch)
        flops.append(counter.get_total_flops())
    assert flops[0] - flops[1] == 2 * 5 * 3 * 32 * 8  # rows, words that are predicted, width, words to choose from


def label_prior() -> TokenPrior:
    """A prior of labels with weights that follow from a formula."""
    vocabulary = Vocabulary.of_labels_and_levels([(5, (2, 2, 1)), (7, (2, 3, 2))], 3)
    transformer = TransformerConfig(dim=16, depth=3, heads=2, head_dim=8, attention=Dalle1Attention(window=3))
    prior = TokenPrior(PriorConfig(vocabulary=vocabulary, transformer=transformer)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(prior.parameters()):
            parameter.copy_((torch.arange(parameter.numel()) * 0.7 + number).sin().view_as(parameter) / 4)
    return prior


@torch.no_grad()
def test_a_prior_of_labels_says_what_it_did_before_there_were_captions():
    prior, codes = label_prior(), torch.arange(16)[None] % 5
    expected = [
        [-1.0197, -0.9490, 0.6344, 1.2065],
        [-0.1072, 0.7593, 0.4154, -0.5906],
        [-0.8442, 1.8807, 1.6078, -1.2280],
        [1.9132, 0.6550, -1.6473, -1.3238],
    ]
    found = prior(codes, torch.tensor([1]))[0, [0, 3, 4, 15], :4]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-4, rtol=0)
    bits = torch.cat([sequence_bits(prior, codes, torch.tensor([1])), sequence_bits(prior, codes)])
    torch.testing.assert_close(bits, torch.tensor([51.6030, 53.6440]), atol=1e-3, rtol=0)


def test_a_prior_of_labels_has_the_weights_and_the_loss_that_it_had():
    prior = label_prior()
    sizes = {name: tuple(value.shape) for name, value in prior.state_dict().items() if "blocks" not in name}
    assert sizes == {
        "network.token_embedding.weight": (23, 16),
        "network.positions.segments.0.0.weight": (2, 16),
        "network.positions.segments.0.1.weight": (2, 16),
        "network.positions.segments.1.0.weight": (2, 16),
        "network.positions.segments.1.1.weight": (3, 16),
        "network.positions.segments.1.2.weight": (2, 16),
        "network.final_norm.g": (16,),
        "network.to_logits.weight": (19, 16),
    }
    codes, labels = random_codes(prior.vocabulary), torch.tensor([0, 2, -1])
    loss, metrics = PriorPhase(prior)({"codes": codes, "label": labels})
    torch.testing.assert_close(loss, -sequence_logprobs(prior, codes, labels).mean())
    assert metrics.keys() == {"loss", "bits_per_token"}


def test_a_configuration_from_before_there_were_captions_is_read():
    stored = {
        "vocabulary": {
            "segments": [
                {"name": "label", "size": 4, "shape": [1], "num_quantizers": 1},
                {"name": "codes", "size": 7, "shape": [2, 3], "num_quantizers": 2},
            ]
        },
        "transformer": {"dim": 32},
        "condition_dropout": 0.2,
    }
    expected = Vocabulary.of_labels_and_codes(7, (2, 3, 2), num_classes=3)
    assert PriorConfig.model_validate(stored).vocabulary == expected
    assert expected.id_ranges == (range(4), *[range(4, 11), range(11, 18)] * 6)
