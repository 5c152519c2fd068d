"""Held-out bits per token."""

import math

import pytest
import torch

from pipelines.evaluate.token_bits import TokenBits, token_bits
from pipelines.models.checkpoint import save_prior
from pipelines.tokens.dataset import TokenDataset
from prior import PriorConfig, TokenPrior, TransformerConfig, Vocabulary, sequence_bits


@pytest.fixture(scope="module")
def prior_folder(tiny_tokens, tmp_path_factory):
    spec = TokenDataset.open(tiny_tokens).spec
    vocabulary = Vocabulary.of_labels_and_codes(spec.num_codes, spec.grid, len(spec.classes))
    torch.manual_seed(0)
    tiny = TransformerConfig(dim=16, depth=1, heads=1, head_dim=16)
    folder = tmp_path_factory.mktemp("prior")
    save_prior(folder, TokenPrior(PriorConfig(vocabulary=vocabulary, transformer=tiny)), spec, spec.classes)
    return folder


def test_bits_are_the_mean_over_held_out_tokens_given_their_labels(prior_folder, tiny_tokens):
    from pipelines.models.checkpoint import load_prior

    batch = TokenDataset.open(tiny_tokens).split("test").batch(range(30))
    expected = sequence_bits(load_prior(prior_folder).model, batch["codes"], batch["label"]).mean().item() / 64
    found = token_bits(prior_folder, tiny_tokens, max_images=30, batch_size=7)
    assert (found.images, found.prior) == (30, pytest.approx(expected, rel=1e-5))


def test_baselines_know_more_than_nothing(prior_folder, tiny_tokens):
    found = token_bits(prior_folder, tiny_tokens)
    assert found.images == 40
    assert found.unigram < math.log2(64) and found.bigram < math.log2(64)


def test_the_margin_is_a_share_of_the_bigram():
    assert TokenBits(1, prior=2.7, unigram=5.0, bigram=3.0).below_bigram == pytest.approx(0.1)
