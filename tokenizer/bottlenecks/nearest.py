"""Nearest codes and cluster sums, without ever holding one number for every pair of vector and code."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Scores held at once. On a CPU a chunk should fit its cache, but each chunk costs a few parallel regions with barriers,
# which are slow when other processes use the cores. On an accelerator a chunk should fill the device.
SCORES_ON_CPU, SCORES_ON_ACCELERATOR = 2**20, 2**26
GROUP = 32


@torch.no_grad()
def nearest(
    vectors: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"], scores_at_once: int | None = None
) -> Int[Tensor, " n"]:
    """The index of the code nearest to each vector, the first one of equals. A vector with NaN gets any valid index.

    With m the mean code, the nearest code e maximises <x, e - m> - <e + m, e - m>/2, which is the squared distance
    without what all codes share: |x|² and an offset common to the codes would only cost digits.

    The search is for the best group of codes, then for the best code in it. On a CPU torch's maximum is vectorised and
    its argmax is not: an argmax over all codes would cost half as much as the product itself.

    `scores_at_once` bounds the memory; the default suits the device.
    """
    mean = codebook.mean(0)
    centred = codebook - mean
    bias = -0.5 * (centred * (codebook + mean)).sum(1)
    width = len(codebook) + -len(codebook) % GROUP

    default = SCORES_ON_CPU if vectors.device.type == "cpu" else SCORES_ON_ACCELERATOR
    rows = min(max(1, (scores_at_once or default) // width), max(1, len(vectors)))
    scores = vectors.new_empty(rows, width)
    scores[:, len(codebook) :] = -torch.inf  # the padding of the last group never wins
    positions = torch.arange(rows, device=vectors.device)
    codes = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
    for start in range(0, len(vectors), rows):
        chunk = vectors[start : start + rows]
        n = len(chunk)
        torch.addmm(bias, chunk, centred.t(), out=scores[:n, : len(codebook)])
        grouped = scores[:n].view(n, -1, GROUP)
        group = grouped.amax(2).argmax(1)
        within = grouped[positions[:n], group].argmax(1)
        torch.add(within, group, alpha=GROUP, out=codes[start : start + rows])
    return codes


@torch.no_grad()
def cluster_sums(
    vectors: Float[Tensor, "n d"], codes: Int[Tensor, " n"], num_codes: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k d"]]:
    """How many vectors each code was given, and their sum."""
    # index_add rather than bincount for the counts: on a GPU bincount waits for the device.
    counts = vectors.new_zeros(num_codes).index_add_(0, codes, vectors.new_ones(len(vectors)))
    sums = vectors.new_zeros(num_codes, vectors.shape[1]).index_add_(0, codes, vectors)
    return counts, sums
