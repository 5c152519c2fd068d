import torch
from torch.distributions import Normal, kl_divergence

from tokenizer.divergences import gaussian_kl


def test_gaussian_kl_is_torchs():
    mean, log_variance = torch.randn(3, 4), torch.randn(3, 4)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)


def test_gaussian_kl_of_the_prior_is_zero():
    assert gaussian_kl(torch.zeros(3), torch.zeros(3)).eq(0).all()
