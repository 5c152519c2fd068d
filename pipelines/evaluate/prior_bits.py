"""What the prior of an image pipeline makes of single images: the bits of their codes, with and without captions."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipelines.data import ImageBatch, ImageDataset
from pipelines.models.checkpoint import LoadedPrior, LoadedTokenizer, load_prior
from pipelines.models.image_pipeline_folder import find_prior
from prior import sequence_bits
from tokenizer import Autoencoder


def open_prior(folder: str | Path, tokenizer: LoadedTokenizer, device: torch.device) -> LoadedPrior | None:
    """The prior of an image pipeline or of the output of `smalti run`; None of anything else.

    Raises:
        UserError: it is missing or damaged, or was trained on tokens of another tokenizer.
    """
    path = find_prior(folder)
    if path is None:
        return None
    prior = load_prior(path, device)
    prior.spec.check_tokenizer(tokenizer.fingerprint, str(tokenizer.folder), f"the tokens of {path}")
    return prior


def why_not_measured(prior: LoadedPrior | None, images: ImageDataset) -> str | None:
    """Why the prior can tell nothing of these images; None where it can, or where there is none."""
    if prior is None or not prior.model.vocabulary.conditional:
        return None
    if prior.model.can_be_guided or _are_known(prior, images):
        return None
    wanted = "captions" if prior.captions is not None else "labels that the prior knows"
    return f"the images have no {wanted}, and it never saw the null condition (condition_dropout=0)"


@torch.no_grad()
def prior_bits_of(model: Autoencoder, prior: LoadedPrior, images: ImageDataset, batch: ImageBatch) -> dict[str, Tensor]:
    """Bits per token of the codes of each image, given its caption or its label where it has one; and without its
    caption, where the prior can do without.
    """
    codes = model.encode(batch.image.to(next(model.parameters()).device)).codes
    assert codes is not None  # the tokenizer of an image pipeline is discrete
    length, condition = prior.model.vocabulary.code_length, _condition(prior, images, batch)
    found = {"bits_per_token": _bits(prior, codes, condition) / length}
    if prior.captions is not None and prior.model.can_be_guided:
        found["bits_per_token_without_caption"] = _bits(prior, codes, None) / length
    return found


def _are_known(prior: LoadedPrior, images: ImageDataset) -> bool:
    """Whether the captions or the labels of images are those that the prior reads."""
    if prior.captions is not None:
        return images.has_text
    return prior.classes is not None and prior.classes == tuple(images.classes or ())


def _condition(prior: LoadedPrior, images: ImageDataset, batch: ImageBatch) -> Int[Tensor, "b ..."] | None:
    if not prior.model.vocabulary.conditional or not _are_known(prior, images):
        return None
    if prior.captions is None:
        return batch.label
    return prior.captions.encode([row.text for row in batch.metadata], prior.model.vocabulary.condition.length)


def _bits(
    prior: LoadedPrior, codes: Int[Tensor, " b *codes"], condition: Int[Tensor, "b ..."] | None
) -> Float[Tensor, " b"]:
    return sequence_bits(prior.model, codes, None if condition is None else condition.to(codes.device)).double()
