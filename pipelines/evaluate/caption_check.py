"""The samples of a model against their captions, for `smalti run` and `smalti evaluate`: shares, and a figure."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from accelerate import Accelerator

from pipelines.base.atomic_files import sha256_of
from pipelines.base.errors import UserError, prefixed
from pipelines.data import DataConfig, Split
from pipelines.evaluate.caption_accuracy import (
    CaptionAccuracy,
    caption_accuracy,
    check_captions,
    checks_captions,
    reconstruction_by,
)
from pipelines.evaluate.caption_figure import draw_captions
from pipelines.evaluate.label_check import check_image_shape, check_weights
from pipelines.evaluate.samples import Samples, read_samples
from pipelines.models.checkpoint import LoadedTokenizer

FIGURE = "captions.png"
SHOWN = 24  # samples in the figure


@dataclass(frozen=True)
class CaptionCheck:
    """`samples` of captions of the `data`, the `tokenizer` that decoded them, and `folder` and name of the `figure`."""

    name: ClassVar[str] = "captions"
    samples: Samples
    data: DataConfig
    tokenizer: LoadedTokenizer
    folder: Path
    figure: str = FIGURE

    @property
    def digests(self) -> dict[str, str | None]:
        """What the result depends on, apart from the tokenizer and the options of the data."""
        return {"samples": sha256_of(self.samples.folder / "samples.json")}

    def measure(self, split: Split, max_images: int | None, accelerator: Accelerator) -> CaptionAccuracy:
        """As `caption_accuracy`. The ceiling is that of the samples' own captions, whatever the split."""
        reconstruct = reconstruction_by(self.tokenizer, accelerator.device)
        verdicts = check_captions(self.samples, self.data, reconstruct, accelerator)
        told = [(row, verdict) for row, verdict in enumerate(verdicts) if verdict is not None][:SHOWN]
        if told and accelerator.is_main_process:
            images = self.samples.read_images([row for row, _ in told])
            draw_captions(self.folder / self.figure, list(images), [verdict for _, verdict in told])
        return caption_accuracy(verdicts)


def open_caption_check(
    samples: Path | None, classifier: Path | None, tokenizer: LoadedTokenizer, data: DataConfig, folder: Path
) -> CaptionCheck | None:
    """The check of a folder of samples whose captions can be read from the pixels; None for other samples.

    Raises:
        UserError: names the option. The samples are missing or unfinished, or another model drew them; there is a
            classifier, which is not needed.
    """
    prepared = data.model_copy(update={"preprocess": tokenizer.preprocess, "binarize": None})
    if samples is None or not checks_captions(prepared):
        return None
    with prefixed("--samples: "):
        found = read_samples(samples)
        if found.prompts is None:
            return None
        check_image_shape(found, tokenizer)
        check_weights(found, tokenizer)
    if classifier is not None:
        raise UserError(f"--classifier: found {classifier}, expected none: captions are read from the pixels")
    return CaptionCheck(found, prepared, tokenizer, folder)
