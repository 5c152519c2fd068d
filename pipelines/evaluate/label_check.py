"""The samples of a model and what tells their labels, for `smalti evaluate`: a mistake is found before any work."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from accelerate import Accelerator

from pipelines.base.atomic_files import sha256_of
from pipelines.base.errors import UserError, prefixed
from pipelines.data import DataConfig, ImageDataset, Split
from pipelines.evaluate.label_accuracy import LabelAccuracy, label_accuracy, label_checker
from pipelines.evaluate.samples import Samples, read_samples
from pipelines.models.checkpoint import LoadedTokenizer, resolve_folder
from pipelines.tokens.facts import shortened


@dataclass(frozen=True)
class LabelCheck:
    """`samples` that fit their model and its `data`, and the `classifier` that tells labels where pixels do not."""

    name: ClassVar[str] = "labels"
    samples: Samples
    data: DataConfig
    classifier: Path | None

    @property
    def digests(self) -> dict[str, str | None]:
        """What the result depends on, apart from the real images."""
        classifier = None if self.classifier is None else sha256_of(resolve_folder(self.classifier) / "config.json")
        return {"samples": sha256_of(self.samples.folder / "samples.json"), "classifier": classifier}

    def measure(self, split: Split, max_images: int | None, accelerator: Accelerator) -> LabelAccuracy:
        """As `label_accuracy`."""
        return label_accuracy(self.samples, self.data, self.classifier, split, max_images, accelerator)


def open_label_check(
    samples: Path | None,
    classifier: Path | None,
    tokenizer: LoadedTokenizer,
    data: DataConfig,
    images: ImageDataset,
) -> LabelCheck | None:
    """The check of a folder of `samples` of a model (None: no check). `images` are those of `data`, as held out.

    Raises:
        UserError: names the option. The samples are missing or unfinished, have no labels or other classes than the
            images, or another model drew them; the classifier is missing, not needed, or does not fit the samples.
    """
    if samples is None:
        if classifier is not None:
            raise UserError(f"--classifier: found {classifier} without --samples, whose labels it tells; expected both")
        return None
    with prefixed("--samples: "):
        found = read_samples(samples)
        _check_labels(found, images)
        check_image_shape(found, tokenizer)
        check_weights(found, tokenizer)
    # Samples are what the likelihood expects: grey, also of a model that was trained on black and white.
    prepared = data.model_copy(update={"preprocess": tokenizer.preprocess, "binarize": None})
    with prefixed("--classifier: "):
        label_checker(prepared, found.classes or (), classifier)
    return LabelCheck(found, prepared, classifier)


def _check_labels(samples: Samples, images: ImageDataset) -> None:
    if not samples.labels or min(samples.labels) < 0:
        raise UserError(f"{samples.folder}: found samples without a label, expected class-conditional ones")
    if images.classes and images.classes != samples.classes:
        found = shortened(tuple(samples.classes) if samples.classes else None)
        raise UserError(f"{samples.folder}: the classes are {found}; the data has {shortened(tuple(images.classes))}")


def check_image_shape(samples: Samples, tokenizer: LoadedTokenizer) -> None:
    """Raises UserError for samples of another size than the model's."""
    config = tokenizer.model.config
    expected = (config.channels, config.image_size, config.image_size)
    if (shape := tuple(samples.read_images(range(1)).shape[1:])) != expected:
        raise UserError(f"{samples.folder}: found images of shape {shape} (c, h, w), the model's are {expected}")


def check_weights(samples: Samples, tokenizer: LoadedTokenizer) -> None:
    """Raises UserError for samples of another tokenizer or, where it belongs to an image pipeline, of another prior."""
    expected, whole = {"tokenizer": tokenizer.folder}, tokenizer.folder.parent
    if (whole / "model_index.json").is_file():
        expected["prior"] = whole / "prior"
    for part, path in expected.items():
        if samples.weights.get(part) != sha256_of(path / "model.safetensors"):
            raise UserError(f"{samples.folder}: found samples of another {part}, expected those of {path}")
