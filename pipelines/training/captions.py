"""The captions of a training run: their tokenizer, and the words of each batch."""

import warnings

import numpy as np
from jaxtyping import Int
from torch import Tensor

from pipelines.base.errors import DataWarning, UserError
from pipelines.base.first_process import first_has_checked
from pipelines.base.random_streams import bits
from pipelines.tokens.captions import is_caption, texts_of
from pipelines.tokens.dataset import Rows, TokenDataset, TokenSplit
from pipelines.training.conditioning import CaptionOptions
from prior import CaptionTokenizer

MEASURED = 100_000  # captions whose length is looked at before training


def train_captions(dataset: TokenDataset, options: CaptionOptions) -> CaptionTokenizer:
    """The tokenizer of the captions of the training split. The same captions give the same one in every process."""
    captions = list(filter(is_caption, dataset.split("train").texts or ()))
    tokenizer = CaptionTokenizer.train(captions, options.vocab_size)
    if not first_has_checked():
        lengths = tokenizer.num_tokens(captions[:MEASURED])
        if too_long := sum(length > options.max_length for length in lengths):
            warnings.warn(
                f"caption.max_length: {too_long:,} of {len(lengths):,} training captions have more than "
                f"{options.max_length} tokens and are cut off; the longest has {max(lengths):,}",
                DataWarning,
                stacklevel=2,
            )
    return tokenizer


def check_captions(dataset: TokenDataset, dropout: float) -> None:
    """Raises UserError where no training row has a caption; or only held-out rows lack one, and without `dropout` of
    conditions the null caption is never trained.
    """
    trained = [is_caption(text) for text in dataset.split("train").texts or ()]
    if not any(trained):
        others = "'label' or 'none'" if dataset.spec.classes else "'none'"
        raise UserError(
            f"condition: found 'caption', but {dataset.folder} has no captions (a source of images names their column "
            f"in `text`, before they are encoded); expected {others}"
        )
    held_out = dataset.split("validation").texts or ()
    if not dropout and all(trained) and not all(map(is_caption, held_out)):
        raise UserError(
            f"condition_dropout: found 0, but {dataset.folder} has rows without a caption in split 'validation', and "
            "the null caption that stands for it is never trained; expected a number above 0"
        )


def training_words(
    captions: CaptionTokenizer, options: CaptionOptions, split: TokenSplit, rows: Rows, seed: int, step: int
) -> Int[Tensor, "b length"]:
    """The captions of some rows of a batch. Which merges are left out depends on the seed, the step and the row alone:
    neither on the number of processes nor on where a run was continued.
    """
    seeds = None
    if options.bpe_dropout:
        seeds = bits((seed, "BPE dropout", step), np.asarray(rows, dtype=np.int64), 1)[:, 0].tolist()
    return captions.encode(texts_of(split, rows), options.max_length, dropout=options.bpe_dropout, seeds=seeds)
