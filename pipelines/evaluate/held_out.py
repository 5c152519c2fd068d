"""Held-out images, as a stage-one model wants them."""

from collections.abc import Iterable
from typing import Any

from accelerate import Accelerator
from pydantic import BaseModel

from pipelines.base.atomic_files import sha256_of
from pipelines.base.errors import UserError
from pipelines.base.first_process import first_process
from pipelines.data import DataConfig, ImageDataset, Split, open_images
from pipelines.models.checkpoint import LoadedTokenizer


def identity_of(
    tokenizer: LoadedTokenizer, images: Any, request: BaseModel, leave_out: Iterable[str] = ("batch_size",)
) -> dict[str, Any]:
    """What the result of a request depends on, by digest: weights, `images`, and the options but for `leave_out`, which
    change no figure.
    """
    options = request.model_dump(mode="json", exclude={*leave_out})
    return {"weights": sha256_of(tokenizer.folder / "model.safetensors"), "images": images, **options}


def open_held_out(
    tokenizer: LoadedTokenizer,
    data: DataConfig,
    split: Split,
    accelerator: Accelerator | None = None,
    name: str = "data",
    or_all: bool = False,
) -> ImageDataset:
    """A split, prepared as the tokenizer was trained; downloaded once. Messages call the data `name`. `or_all`: as in
    `open_images`.

    Raises:
        UserError: as `open_images`; or the labels mean something else than they did in training.
    """
    with first_process(accelerator):
        images = open_images(data.model_copy(update={"preprocess": tokenizer.preprocess}), split, or_all)
    check_classes(tokenizer, images, name)
    return images


def check_classes(tokenizer: LoadedTokenizer, images: ImageDataset, name: str = "data") -> None:
    """Labels mean what they meant in training. Data without labels is used without, by a model that has learned to.

    Raises:
        UserError: the data has other classes than the model's condition, or none and the model needs them.
    """
    found = tuple(images.classes or ())
    if not found and tokenizer.model.needs_labels:
        raise UserError(
            f"{name}: has no labels; the tokenizer was trained on images with labels only, "
            f"{_shown(tokenizer.classes or ())}, and without model.condition.dropout; expected the same labels"
        )
    if tokenizer.classes is not None and found and found != tokenizer.classes:
        raise UserError(
            f"{name}: the classes are {_shown(found)}; the tokenizer was trained with the labels "
            f"{_shown(tokenizer.classes)}"
        )


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
