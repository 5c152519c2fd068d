"""Choosing among completions of an image by the codes that are kept after the drawn ones.

A draw sees only the codes before it. Where all kept codes come first, the draws follow p(drawn | kept) exactly. Kept
codes that come later have no say in the draws before them. Importance resampling gives them one: of several candidates
one is chosen, with a probability in proportion to

    w = product of p(code | all codes before it) over the codes that are kept after the first drawn one.

The draws of the chosen candidate follow p(drawn | kept) as the number of candidates grows (Rubin 1987, the SIR
algorithm), if codes are drawn from the prior as it is: temperature 1, no filter, no guidance. Otherwise they follow the
distribution of the draws as filtered, times w.
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor

from prior.noise import GumbelNoise


def kept_after_a_draw(kept_codes: Int[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
    """Which codes are kept (not -1) although one before them is drawn. None: the draws are exact."""
    drawn = kept_codes < 0
    return ~drawn & (drawn.cumsum(dim=1) > 0)


def importance_log_weights(logprobs: Float[Tensor, "b n"], kept_codes: Int[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """ln w of each candidate, in nats: `logprobs` of its codes, summed over those that are kept after a draw."""
    later = kept_after_a_draw(kept_codes)
    return logprobs[:, : later.shape[1]].double().masked_fill(~later, 0).sum(dim=1)


def choose_candidates(log_weights: Float[Tensor, "b k"], seeds: Sequence[int]) -> Int[Tensor, " b"]:
    """One of the k candidates of each completion, drawn in proportion to the weights; -inf is never chosen.

    The seed of a completion decides, so it must not be the seed of a candidate: draws and choice would share noise.
    """
    rows, candidates = log_weights.shape
    assert rows == len(seeds)
    noise = GumbelNoise(seeds, 1, candidates, log_weights.device).at(0)
    return (log_weights - log_weights.amax(dim=1, keepdim=True) + noise).argmax(dim=1)


def effective_candidates(log_weights: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """The effective sample size, 1 / sum of squared normalised weights: from 1 (one candidate decides) to k (all count
    alike).
    """
    return 1 / log_weights.softmax(dim=1).square().sum(dim=1)
