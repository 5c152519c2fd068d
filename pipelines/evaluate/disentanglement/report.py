"""All scores of one set of latents."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from pipelines.base.errors import UserError
from pipelines.evaluate.disentanglement.dci import DCIScore, dci_score
from pipelines.evaluate.disentanglement.factor_vae import FactorVAEScore, factor_vae_score
from pipelines.evaluate.disentanglement.mutual_information import MutualInformation, mutual_information
from pipelines.evaluate.disentanglement.rows import MAX_TRAIN, Rows
from pipelines.evaluate.disentanglement.sap import SAPScore, sap_score
from pipelines.evaluate.disentanglement.scikit_learn import check_scikit_learn, check_values

Score = Literal["mig", "factor_vae", "sap", "dci"]
MOST_LATENTS = 128  # beyond, trees and support vector machines are too slow
SCORES: tuple[Score, ...] = ("mig", "factor_vae", "sap", "dci")


@dataclass(frozen=True)
class DisentanglementReport:
    """Scores in [0, 1], larger is better; None for those that were not asked for.

    rows, latents: how many were seen. factors: their names, in the order of the matrices' columns. left_out: factors
    with one value only, of which no score can say anything.
    """

    rows: int
    latents: int
    factors: tuple[str, ...]
    left_out: tuple[str, ...]
    information: MutualInformation
    factor_vae: FactorVAEScore | None
    sap: SAPScore | None
    dci: DCIScore | None

    @property
    def mig(self) -> float:
        return self.information.mig

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, fit for JSON."""
        content = {name: value for name, value in asdict(self).items() if name != "information"}
        content["mig"] = self.mig
        content["mig_of_factor"] = dict(zip(self.factors, self.information.gaps, strict=True))
        content["mutual_information"] = self.information.matrix
        content["entropy"] = dict(zip(self.factors, self.information.entropy, strict=True))
        return _plain(content)


def disentanglement(
    representation: ArrayLike, factors: ArrayLike, names: Sequence[str], seed: int, scores: Collection[Score] = SCORES
) -> DisentanglementReport:
    """Score a representation (n, d) by the factors (n, f) of its images: integers, one column for each of `names`.

    The representation of a variational autoencoder is the posterior's mean, flattened. MIG sees at most 10,000 rows,
    the FactorVAE score all, SAP and DCI train on at most 10,000 and test on 5,000. The same seed gives the same report.
    MIG costs nearly nothing and is always there. DCI is slow: it fits 100 trees for each value of each factor.

    Raises:
        ValueError: shapes that do not belong together, or factors that are no integers.
        UserError: fewer than two latents or factors that vary; numbers that are not finite; too few rows; scikit-learn
            is asked for (SAP, DCI) and not installed.
    """
    if {"sap", "dci"} & set(scores):
        check_scikit_learn()
    everything = _checked(np.asarray(representation), np.asarray(factors), names)
    varying = (everything.factors != everything.factors[0]).any(0)
    kept = tuple(name for name, varies in zip(names, varying, strict=True) if varies)
    rows = Rows(everything.latents, everything.factors[:, varying]).shuffled(seed)
    _check_enough(rows, kept)
    train, test = rows.split()
    if {"sap", "dci"} & set(scores):
        check_values(train, kept)
    return DisentanglementReport(
        rows=len(rows),
        latents=rows.latents.shape[1],
        factors=kept,
        left_out=tuple(name for name in names if name not in kept),
        information=mutual_information(rows[:MAX_TRAIN]),
        factor_vae=factor_vae_score(rows, seed) if "factor_vae" in scores else None,
        sap=sap_score(train, test) if "sap" in scores else None,
        dci=dci_score(train, test, seed) if "dci" in scores else None,
    )


def scores_that_are_possible(latents: int) -> tuple[tuple[Score, ...], list[str]]:
    """The scores that can be had of so many latents in minutes, and notes on those that are left out."""
    quick: tuple[Score, ...] = ("mig", "factor_vae")
    if latents > MOST_LATENTS:
        return quick, [f"SAP and DCI are left out: they would take hours for {latents:,} latent units"]
    try:
        check_scikit_learn()
    except UserError as error:
        return quick, [str(error)]
    return SCORES, []


def _checked(representation: np.ndarray, factors: np.ndarray, names: Sequence[str]) -> Rows:
    shapes = f"representation {representation.shape}, factors {factors.shape}, {len(names)} names"
    if representation.ndim != 2 or factors.shape != (len(representation), len(names)):
        raise ValueError(f"found {shapes}, expected (n, d), (n, f) and f names")
    if not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"found factors of {factors.dtype}, expected integers")
    if len(representation) < 3:
        raise UserError(f"disentanglement: found {len(representation)} rows, expected at least 3, better thousands")
    if not np.isfinite(representation).all():
        raise UserError("disentanglement: the representation holds numbers that are not finite")
    return Rows(representation.astype(np.float64), factors.astype(np.int64))


def _check_enough(rows: Rows, names: Sequence[str]) -> None:
    """The scores compare latents with each other, factors with each other, and rows that share a factor's value."""
    for what, found in (("latents", rows.latents.shape[1]), ("factors that vary", rows.factors.shape[1])):
        if found < 2:
            raise UserError(f"disentanglement: found {found} {what}, expected at least 2")
    for name, values in zip(names, rows.factors.T, strict=True):
        if len(np.unique(values)) == len(rows):
            found = f"each of {len(rows):,} rows has its own value"
            raise UserError(f"factor {name!r}: {found}, expected values that rows share, such as numbers of bins")


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _plain(value) for name, value in content.items()}
    if isinstance(content, np.ndarray | np.generic):
        return content.tolist()
    return list(content) if isinstance(content, tuple) else content
