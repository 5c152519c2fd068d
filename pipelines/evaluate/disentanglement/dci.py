"""Disentanglement, completeness, informativeness: Eastwood and Williams 2018, openreview By-7dz-AZ, section 2."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.base.random_streams import seed_of
from pipelines.evaluate.disentanglement.rows import Rows
from pipelines.evaluate.disentanglement.scikit_learn import check_scikit_learn

NEVER_ZERO = 1e-11  # added to importances before their entropy, as in disentanglement_lib


@dataclass(frozen=True)
class DCIScore:
    """disentanglement: each latent serves one factor. completeness: each factor is served by one latent.

    informativeness: mean accuracy with which all latents together predict the factors of the test rows.
    train_accuracy: of the training rows. importance: (d, f) of each latent for each factor; columns sum to 1.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    train_accuracy: float
    importance: NDArray[np.float64]


def dci_score(train: Rows, test: Rows, seed: int) -> DCIScore:
    """Gradient boosted trees with scikit-learn's defaults for each factor, as in disentanglement_lib.

    The trees' importances are known up to ties, which the seed decides.

    Raises:
        UserError: scikit-learn is not installed.
    """
    check_scikit_learn()
    from sklearn.ensemble import GradientBoostingClassifier

    importance, train_accuracy, test_accuracy = [], [], []
    for number, (values, test_values) in enumerate(zip(train.factors.T, test.factors.T, strict=True)):
        trees = GradientBoostingClassifier(random_state=seed_of((seed, "boosted trees", number)) % 2**32)
        trees.fit(train.latents, values)
        importance.append(trees.feature_importances_)
        train_accuracy.append((trees.predict(train.latents) == values).mean())
        test_accuracy.append((trees.predict(test.latents) == test_values).mean())
    matrix = np.stack(importance, axis=1)
    return DCIScore(
        disentanglement(matrix),
        completeness(matrix),
        float(np.mean(test_accuracy)),
        float(np.mean(train_accuracy)),
        matrix,
    )


def disentanglement(importance: NDArray[np.float64]) -> float:
    """1 - entropy of each row of (d, f), in units of ln f, weighted by the row's share of all importance."""
    total = importance.sum()
    weights = importance.sum(1) / total if total else np.full(len(importance), 1 / len(importance))
    shares = importance + NEVER_ZERO
    shares = shares / shares.sum(1, keepdims=True)
    entropy = -(shares * np.log(shares)).sum(1) / np.log(importance.shape[1])
    return float((weights * (1 - entropy)).sum())


def completeness(importance: NDArray[np.float64]) -> float:
    """1 - entropy of each column of (d, f), in units of ln d, weighted by the column's share of all importance."""
    return disentanglement(importance.T)
