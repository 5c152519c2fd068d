"""The predictors of SAP and DCI come from scikit-learn, an extra."""

import importlib.util
from collections.abc import Sequence

from pipelines.base.errors import UserError
from pipelines.evaluate.disentanglement.rows import Rows


def check_scikit_learn() -> None:
    """Refuse to go on without it.

    Raises:
        UserError: names the extra to install.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise UserError(
            "disentanglement: SAP and DCI need scikit-learn, which is not installed; expected after "
            "`pip install smalti[disentanglement]` (MIG and the FactorVAE score do without)"
        )


def check_values(rows: Rows, names: Sequence[str]) -> None:
    """Refuse training rows in which a factor does not vary: no predictor can be fitted.

    Raises:
        UserError: names the factor.
    """
    for name, values in zip(names, rows.factors.T, strict=True):
        if (values == values[0]).all():
            raise UserError(
                f"factor {name!r}: one value only in the {len(rows):,} rows that train the predictors, expected two; "
                "give more rows"
            )
