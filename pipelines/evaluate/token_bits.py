"""How well a prior predicts held-out tokens, beside what counting alone can do."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.base.progress import progress
from pipelines.models.checkpoint import load_prior
from pipelines.tokens.dataset import TokenDataset
from prior import sequence_bits


@dataclass(frozen=True)
class TokenBits:
    """Mean bits per token over `images` held-out images. The baselines were fitted on the train split by `encode`."""

    images: int
    prior: float
    unigram: float
    bigram: float

    @property
    def below_bigram(self) -> float:
        """The share of the bigram's bits that the prior saves."""
        return 1 - self.prior / self.bigram


def token_bits(
    prior_folder: str | Path,
    tokens_folder: str | Path,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> TokenBits:
    """Bits per token of the first `limit` rows of a split of a token dataset.

    Raises:
        UserError: the prior was trained on tokens of another tokenizer.
    """
    dataset, loaded = TokenDataset.open(tokens_folder), load_prior(prior_folder, device)
    loaded.spec.check_same_codes(dataset.spec, str(prior_folder), str(tokens_folder))
    held_out = dataset.split(split)
    rows = range(len(held_out) if limit is None else min(limit, len(held_out)))
    counted = dataset.baselines().bits_per_token(held_out.batch(rows)["codes"])
    conditional, total = loaded.model.vocabulary.num_classes is not None, 0.0
    with progress(len(rows), "held-out bits", "image") as meter:
        for start in range(0, len(rows), batch_size):
            part = held_out.batch(rows[start : start + batch_size])
            labels = part["label"].to(device) if conditional else None
            total += sequence_bits(loaded.model, part["codes"].to(device), labels).double().sum().item()
            meter.advance(len(part["codes"]))
    per_token = total / len(rows) / dataset.spec.tokens_per_image
    return TokenBits(len(rows), per_token, counted.unigram, counted.bigram)
