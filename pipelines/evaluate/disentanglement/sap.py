"""Separated attribute predictability (SAP): Kumar et al. 2018, arXiv 1711.00848, section 3."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.disentanglement.rows import Rows
from pipelines.evaluate.disentanglement.scikit_learn import check_scikit_learn


@dataclass(frozen=True)
class SAPScore:
    """score: mean over factors of the gap between the two latents that predict it best. accuracies: (d, f)."""

    score: float
    accuracies: NDArray[np.float64]


def sap_score(train: Rows, test: Rows) -> SAPScore:
    """A linear support vector machine for each latent and factor, and its accuracy on the test rows.

    Its settings are disentanglement_lib's for discrete factors, C = 0.01 and balanced classes. The penalty depends on
    the scale of a latent, so the score does a little too. With one latent a machine
    scikit-learn solves the primal problem, which uses no random numbers.

    Raises:
        UserError: scikit-learn is not installed.
    """
    check_scikit_learn()
    from sklearn.svm import LinearSVC

    def accuracy(latent: int, factor: int) -> float:
        machine = LinearSVC(C=0.01, class_weight="balanced")
        machine.fit(train.latents[:, [latent]], train.factors[:, factor])
        return float(np.mean(machine.predict(test.latents[:, [latent]]) == test.factors[:, factor]))

    latents, factors = range(train.latents.shape[1]), range(train.factors.shape[1])
    accuracies = np.array([[accuracy(latent, factor) for factor in factors] for latent in latents])
    ordered = np.sort(accuracies, axis=0)
    return SAPScore(float((ordered[-1] - ordered[-2]).mean()), accuracies)
