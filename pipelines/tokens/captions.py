"""Captions and labels of token datasets, as a prior reads them."""

from collections.abc import Iterable
from typing import TypeGuard

import numpy as np
from jaxtyping import Int
from torch import Tensor

from pipelines.models.captions import takes_captions
from pipelines.tokens.dataset import Rows, TokenSplit
from prior import CaptionTokenizer, Vocabulary


def texts_of(split: TokenSplit, rows: Rows) -> list[str | None]:
    """The captions of some rows, in the order asked; None for a row without one."""
    texts = split.texts
    places = np.asarray(rows).tolist()
    return [None] * len(places) if texts is None else [texts[row] for row in places]


def condition_of(
    split: TokenSplit, rows: Rows, batch: dict[str, Tensor], vocabulary: Vocabulary, captions: CaptionTokenizer | None
) -> Int[Tensor, "b ..."] | None:
    """What a prior with this vocabulary reads of some rows, whose `batch` this is: words of their captions (b, length),
    labels (b,), or nothing. -1 stands for what a row has not.
    """
    if captions is not None and takes_captions(vocabulary):
        return captions.encode(texts_of(split, rows), vocabulary.condition.length)
    return batch["label"] if vocabulary.conditional else None


def distinct_captions(split: TokenSplit, most: int) -> list[str]:
    """The first captions of a split, each once; at most so many."""
    found: dict[str, None] = {}
    for text in filter(is_caption, split.texts or ()):
        if len(found) == most:
            break
        found[text] = None
    return list(found)


def unseen_captions(split: TokenSplit, captions: Iterable[str]) -> list[str]:
    """Those of `captions` that no row of the split has, each once. As for a prior, neither case nor the amount of white
    space makes a difference.
    """
    unseen: dict[str, list[str]] = {}
    for caption in dict.fromkeys(captions):
        unseen.setdefault(_as_read(caption), []).append(caption)
    for text in split.texts or ():
        if text is not None:
            unseen.pop(_as_read(text), None)
    return [caption for spellings in unseen.values() for caption in spellings]


def _as_read(text: str) -> str:
    return " ".join(text.lower().split())


def is_caption(text: str | None) -> TypeGuard[str]:
    """Whether there is any word in a text. Otherwise a prior reads the null caption."""
    return text is not None and bool(text.strip())
