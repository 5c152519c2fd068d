"""Does each latent stand for one factor of variation? Scores on stored latents and the true factors of their images.

Protocol and constants are those of disentanglement_lib (Locatello et al. 2019, arXiv 1811.12359; the configuration of
its unsupervised study). It samples from a simulator; here the rows are stored. So rows are drawn without replacement,
and where there are fewer than 15,000, two thirds train the predictors of SAP and DCI and one third tests them.
"""

from pipelines.evaluate.disentanglement.figure import draw_mutual_information
from pipelines.evaluate.disentanglement.report import (
    SCORES,
    DisentanglementReport,
    Score,
    disentanglement,
    scores_that_are_possible,
)

__all__ = [
    "SCORES",
    "DisentanglementReport",
    "Score",
    "disentanglement",
    "draw_mutual_information",
    "scores_that_are_possible",
]
