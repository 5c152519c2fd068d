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

    Seeds are drawn in proportion to the squared distance from those before, in a few rounds (k-means||, arXiv
    1203.6402): half of the patches may be one plain ground, which needs one code. Empty clusters are drawn anew the
    same way. What is empty even in the end (fewer distinct vectors than codes) is a vector plus noise of a tenth of the
    vectors' spread, so that no two codes are equal and later batches can part them.
    """
    means = draw(vectors, torch.ones_like(vectors[:, 0]), 1)
    while len(means) < num_codes:
        quota = min(-(-num_codes // SEEDING_ROUNDS), num_codes - len(means))
        means = torch.cat([means, draw(vectors, _squared_error(vectors, means), quota)])
    for _ in range(iterations):
        codes = nearest(vectors, means)
        counts, sums = cluster_sums(vectors, codes, num_codes)
        empty = counts == 0
        fresh = draw(vectors, (vectors - means[codes]).square().sum(1), num_codes)
        turn = (empty.cumsum(0) - 1).clamp_min(0) % len(fresh)
        centres = sums / counts.clamp_min(1)[:, None]
        centres = normalize(centres, dim=-1, eps=1e-6) if unit_length else centres
        means = torch.where(empty[:, None], fresh[turn], centres)
    counts, _ = cluster_sums(vectors, nearest(vectors, means), num_codes)
    noise = 0.1 * vectors.std(0, correction=0).clamp_min(1e-3) * torch.randn_like(means)
    jittered = normalize(means + noise, dim=-1, eps=1e-6) if unit_length else means + noise
    return torch.where((counts == 0)[:, None], jittered, means), counts


def draw(vectors: Float[Tensor, "n d"], weights: Float[Tensor, " n"], limit: int) -> Float[Tensor, "m d"]:
    """Up to `limit` vectors, drawn by weight without replacement."""
    # The largest of weight / exponential noise are such a draw (Efraimidis and Spirakis 2006), without a host sync.
    keys = weights / torch.empty_like(weights).exponential_()
    return vectors[keys.topk(min(limit, len(vectors))).indices]


def _squared_error(vectors: Float[Tensor, "n d"], means: Float[Tensor, "k d"]) -> Float[Tensor, " n"]:
    return (vectors - means[nearest(vectors, means)]).square().sum(1)
