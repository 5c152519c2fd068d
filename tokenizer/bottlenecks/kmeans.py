"""Lloyd's k-means, hardened for codebooks."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from tokenizer.bottlenecks.nearest import cluster_sums, nearest

SEEDING_ROUNDS = 8


@torch.no_grad()
def kmeans(
    vectors: Float[Tensor, "n d"], num_codes: int, iterations: int = 10, unit_length: bool = False
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """`num_codes` means of `vectors`, and how many vectors each has; with `unit_length`, means on the sphere.

    Seeds are sampled in proportion to the squared distance from those before, in a few rounds (k-means||, arXiv
    1203.6402): half of the patches may be one plain background, which needs one code. Empty clusters are replaced the
    same way. A code that is still empty at the end (fewer distinct vectors than codes) becomes a vector plus noise of a
    tenth of the vectors' spread, so that no two codes are equal and later batches can separate them.
    """
    means = weighted_sample(vectors, torch.ones_like(vectors[:, 0]), 1)
    while len(means) < num_codes:
        quota = min(-(-num_codes // SEEDING_ROUNDS), num_codes - len(means))
        means = torch.cat([means, weighted_sample(vectors, _squared_error(vectors, means), quota)])
    for _ in range(iterations):
        codes = nearest(vectors, means)
        counts, sums = cluster_sums(vectors, codes, num_codes)
        empty = counts == 0
        fresh = weighted_sample(vectors, (vectors - means[codes]).square().sum(1), num_codes)
        turn = (empty.cumsum(0) - 1).clamp_min(0) % len(fresh)
        centres = sums / counts.clamp_min(1)[:, None]
        centres = normalize(centres, dim=-1, eps=1e-6) if unit_length else centres
        means = torch.where(empty[:, None], fresh[turn], centres)
    counts, _ = cluster_sums(vectors, nearest(vectors, means), num_codes)
    noise = 0.1 * vectors.std(0, correction=0).clamp_min(1e-3) * torch.randn_like(means)
    jittered = normalize(means + noise, dim=-1, eps=1e-6) if unit_length else means + noise
    return torch.where((counts == 0)[:, None], jittered, means), counts


def weighted_sample(vectors: Float[Tensor, "n d"], weights: Float[Tensor, " n"], limit: int) -> Float[Tensor, "m d"]:
    """Up to `limit` vectors, sampled by weight without replacement."""
    return vectors[sampling_keys(weights).topk(min(limit, len(vectors))).indices]


def sampling_keys(weights: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Random keys; the entries with the m largest are a sample of m by weight, without replacement or host sync.

    Keys are weight / exponential noise (Efraimidis and Spirakis 2006). The largest of several batches' largest keys are
    a sample of all batches together. A weight of 0 gives the key 0.
    """
    return weights / torch.empty_like(weights).exponential_()


def _squared_error(vectors: Float[Tensor, "n d"], means: Float[Tensor, "k d"]) -> Float[Tensor, " n"]:
    return (vectors - means[nearest(vectors, means)]).square().sum(1)
