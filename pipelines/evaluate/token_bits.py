"""How well a prior predicts held-out tokens, beside what counting alone can do."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.base.distributed import gather, share_of
from pipelines.base.progress import progress
from pipelines.models.checkpoint import load_prior
from pipelines.tokens.captions import condition_of
from pipelines.tokens.dataset import TokenDataset
from prior import TokenPrior, sequence_bits


@dataclass(frozen=True)
class TokenBits:
    """Mean bits per token over `images` held-out images, those of the prior given the condition of each. The baselines
    were fitted on the train split by `encode`. `without_caption`: of a prior by caption that can do without one.
    """

    images: int
    prior: float
    unigram: float
    bigram: float
    without_caption: float | None = None

    @property
    def below_bigram(self) -> float:
        """The share of the bigram's bits that the prior saves."""
        return 1 - self.prior / self.bigram


def token_bits(
    prior_folder: str | Path,
    tokens_folder: str | Path,
    split: str = "test",
    max_images: int | None = None,
    batch_size: int = 64,
    accelerator: Accelerator | None = None,
) -> TokenBits:
    """Bits per token of the first `max_images` rows of a split of a token dataset, given their labels or their
    captions where they have any. Every process takes its share.

    Raises:
        UserError: the prior was trained on tokens of another tokenizer.
    """
    device = accelerator.device if accelerator else torch.device("cpu")
    dataset, loaded = TokenDataset.open(tokens_folder), load_prior(prior_folder, device)
    loaded.spec.check_same_codes(dataset.spec, str(prior_folder), str(tokens_folder))
    held_out = dataset.split(split)
    rows = range(len(held_out) if max_images is None else min(max_images, len(held_out)))
    mine, visible = share_of(rows, accelerator), accelerator is None or accelerator.is_main_process
    prior, baselines = loaded.model, dataset.baselines()
    with_and_without = loaded.captions is not None and prior.can_be_guided
    found: list[tuple[float, ...]] = []  # bits of a whole batch
    with progress(len(mine), "held-out bits", "image", visible=visible) as meter:
        for start in range(0, len(mine), batch_size):
            part = mine[start : start + batch_size]
            batch = held_out.batch(part)
            codes, condition = batch["codes"], condition_of(held_out, part, batch, prior.vocabulary, loaded.captions)
            counted = baselines.bits_per_token(codes)
            conditions = [condition, None] if with_and_without else [condition]
            bits = [_bits(prior, codes.to(device), each) for each in conditions]
            found.append((counted.unigram * codes.numel(), counted.bigram * codes.numel(), *bits))
            meter.advance(len(codes))
    found = gather(found, accelerator)
    tokens = len(rows) * dataset.spec.tokens_per_image
    unigram, bigram, given, *without = (math.fsum(column) / tokens for column in zip(*found, strict=True))
    return TokenBits(len(rows), given, unigram, bigram, without[0] if without else None)


def _bits(prior: TokenPrior, codes: Tensor, condition: Tensor | None) -> float:
    return sequence_bits(prior, codes, None if condition is None else condition.to(codes.device)).double().sum().item()
