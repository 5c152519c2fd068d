"""Which images a run is trained from, by digest: their folder may move."""

from pipelines.base.errors import UserError
from pipelines.data import DataConfig, Split, open_images
from pipelines.tokens.encoding_spec import source_digest

SPLITS_IN_TRAINING: tuple[Split, ...] = ("train", "validation")


def image_digests(data: DataConfig) -> dict[str, str]:
    """A digest of each split that training reads; empty where the images have been removed since."""
    lenient = data.model_copy(update={"on_unreadable": "skip"})
    try:
        return {f"{split} images": source_digest(data, open_images(lenient, split)) for split in SPLITS_IN_TRAINING}
    except UserError:
        return {}
