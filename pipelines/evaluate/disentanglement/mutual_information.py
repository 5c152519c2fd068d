"""How much each latent tells about each factor, and the gap between the two that tell most (MIG)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.disentanglement.rows import Rows

BINS = 20  # discretizer.num_bins of disentanglement_lib's mig.gin


@dataclass(frozen=True)
class MutualInformation:
    """matrix: I(latent; factor) in nats, (d, f). entropy: H(factor) in nats, (f,)."""

    matrix: NDArray[np.float64]
    entropy: NDArray[np.float64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """(d, f) the share of a factor's entropy that a latent tells, in [0, 1]."""
        return self.matrix / self.entropy

    @property
    def gaps(self) -> NDArray[np.float64]:
        """(f,) share of the most telling latent minus that of the second (arXiv 1802.04942, inside equation 6)."""
        ordered = np.sort(self.shares, axis=0)
        return ordered[-1] - ordered[-2]

    @property
    def mig(self) -> float:
        """The mutual information gap: the mean of the gaps (arXiv 1802.04942, equation 6)."""
        return float(self.gaps.mean())


def mutual_information(rows: Rows) -> MutualInformation:
    """Of every latent, in bins, with every factor. Frequencies stand for probabilities, as in disentanglement_lib."""
    bins, values = discretize(rows.latents).T, rows.factors.T
    matrix = [[_mutual_information(latent, factor) for factor in values] for latent in bins]
    return MutualInformation(np.array(matrix), np.array([_mutual_information(factor, factor) for factor in values]))


def discretize(latents: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n, d) numbers of bins: BINS equal intervals from the smallest to the largest value of each latent."""
    edges = np.linspace(latents.min(0), latents.max(0), BINS + 1)[1:-1]
    return np.stack([np.digitize(*pair) for pair in zip(latents.T, edges.T, strict=True)], axis=1)


def _mutual_information(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """In nats, of the joint frequencies of two rows of integers."""
    (a_values, a), (b_values, b) = (np.unique(values, return_inverse=True) for values in (a, b))
    counts = np.bincount(a * len(b_values) + b, minlength=len(a_values) * len(b_values))
    joint = counts.reshape(len(a_values), len(b_values)) / len(a)
    independent = np.outer(joint.sum(1), joint.sum(0))
    seen = joint > 0
    return max(0.0, float((joint[seen] * np.log(joint[seen] / independent[seen])).sum()))
