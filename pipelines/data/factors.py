"""Ground-truth factors of images as integers, for scores of disentanglement."""

from pipelines.base.errors import UserError
from pipelines.data.dataset import ImageDataset, Indices
from pipelines.data.source import Factors


def read_factors(images: ImageDataset, rows: Indices) -> Factors:
    """The factors of these rows of a split. No image is decoded.

    Raises:
        UserError: the data has no factors, or a row lacks one.
        IndexError: no such row.
    """
    found = images.factors(rows)
    if found is None:
        raise UserError(
            "data.source: found no ground-truth factors, expected columns named in factor_columns (huggingface), or "
            "two_object_fraction: 0 (shapes), relation_fraction: 0 and count_fraction: 0 (composition)"
        )
    return found
