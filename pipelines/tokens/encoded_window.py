"""Tokens of a split that nobody has stored: encoded here and now, to see how a codebook is used."""

import torch

from pipelines.base.errors import UserError
from pipelines.base.progress import progress
from pipelines.data import DataConfig, Split, open_images
from pipelines.models.checkpoint import LoadedTokenizer
from pipelines.models.token_spec import smallest_dtype
from pipelines.tokens.encoding_spec import compute_batch
from pipelines.tokens.shard_encoder import PassReader, encoded_passes, passes_of
from pipelines.tokens.shards import plan_shards
from pipelines.tokens.statistics import TokenWindow, window_in_memory


def encoded_window(tokenizer: LoadedTokenizer, data: DataConfig, split: Split = "validation") -> TokenWindow:
    """The tokens of a whole split. UserError if none of its images can be read."""
    model = tokenizer.model
    assert model.num_codes is not None
    images = open_images(data.model_copy(update={"on_unreadable": "skip", "workers": 1}), split)
    size = compute_batch(model.config.image_size, next(model.parameters()).device)
    passes = passes_of(plan_shards(split, len(images), 1), size)
    parts = []
    with progress(len(images), f"encode {split}", unit="image") as meter:
        for batch, codes in encoded_passes(model, PassReader({split: images}, size), passes):
            parts.append(codes[: len(batch.keys)].cpu())
            meter.advance(len(batch.keys) + len(batch.unreadable))
    tokens = torch.cat(parts).numpy().astype(smallest_dtype(model.num_codes))
    if not len(tokens):
        raise UserError(f"data: split {split!r} has no readable image; the codebook cannot be measured")
    return window_in_memory(split, tokens, model.code_grids)
