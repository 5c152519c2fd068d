"""Captions as words: byte-pair encoding (BPE), trained on the captions of a data set, as DALL-E 1 reads its own.

The library `tokenizers` trains and encodes. It cannot be given a seed for BPE dropout (arXiv 1910.13267), so that the
merging with dropout is done here, with the merges that the library has learnt.
"""

import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from prior.bpe_dropout import merge_with_dropout

BYTES = 256
"""The smallest vocabulary: a word for each byte, so that no text is unknown."""


class CaptionTokenizer:
    """Lower-cased captions as words of a byte-level BPE; runs of white space count as one space.

    Word ids lie in [0, num_words); -1 is a pad. A pad of each position belongs to the prior's vocabulary.
    """

    def __init__(self, merges: Sequence[tuple[str, str]] = ()):
        self._tokenizer = _tokenizer(merges)

    @classmethod
    def train(cls, captions: Iterable[str], num_words: int) -> "CaptionTokenizer":
        """Learn at most `num_words` words: those of all bytes, then merges of what stands together at least twice.

        The same captions give the same words. Raises ValueError for fewer words than bytes.
        """
        if num_words < BYTES:
            raise ValueError(f"num_words: found {num_words}, expected at least {BYTES}, one for each byte")
        tokenizer = _tokenizer(())
        tokenizer.train_from_iterator(captions, _trainer(num_words))
        return cls(_merges(tokenizer))

    @property
    def num_words(self) -> int:
        """Size of the vocabulary; few captions make fewer words than `train` was asked for."""
        return self._tokenizer.get_vocab_size()

    def num_tokens(self, texts: Sequence[str | None]) -> list[int]:
        """How many words each caption has without dropout; `encode` cuts off those beyond its `length`."""
        return [len(self._encode(text)) for text in texts]

    def encode(
        self, texts: Sequence[str | None], length: int, *, dropout: float = 0.0, seeds: Sequence[int] | None = None
    ) -> Int[Tensor, "b {length}"]:
        """The words of each caption, filled up with pads or cut off at `length`. None is the null caption: all pads.

        With `dropout` each merge is left out with that probability, by one seed for each row: the words of a row follow
        from its text and its seed alone. Raises ValueError for a dropout without seeds.
        """
        if dropout and (seeds is None or len(seeds) != len(texts)):
            found = "none" if seeds is None else len(seeds)
            raise ValueError(f"seeds: found {found}, expected one for each of {len(texts)} captions, for BPE dropout")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must lie in [0, 1], got {dropout}")
        if dropout and seeds is not None:
            rows = [self._encode_with_dropout(text, dropout, seed) for text, seed in zip(texts, seeds, strict=True)]
        else:
            rows = [self._encode(text) for text in texts]
        padded = [row[:length] + [-1] * (length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).view(len(texts), length)

    def decode(self, words: Int[Tensor, "b n"]) -> list[str]:
        """The text of each row; pads are left out."""
        rows = [[word for word in row if word >= 0] for row in words.tolist()]
        return [self._tokenizer.decode(row).strip() for row in rows]

    def to_json(self) -> str:
        """All of it, in the format `tokenizer.json` of Hugging Face."""
        return self._tokenizer.to_str()

    @classmethod
    def from_json(cls, text: str) -> "CaptionTokenizer":
        """Inverse of `to_json`. Raises ValueError for what is not a tokenizer that `train` made."""
        try:
            found = _library().Tokenizer.from_str(text)
            read = cls(_merges(found))
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"expected the JSON of a caption tokenizer: {error}") from error
        if json.loads(found.to_str()) != json.loads(read.to_json()):
            raise ValueError("expected a lower-casing byte-level BPE as `to_json` writes it, found another tokenizer")
        return read

    def _encode(self, text: str | None) -> list[int]:
        return [] if text is None else self._tokenizer.encode(_encodable(text)).ids

    def _encode_with_dropout(self, text: str | None, dropout: float, seed: int) -> list[int]:
        if text is None:
            return []
        kept = _kept(random.Random(seed), dropout)
        normalized = self._tokenizer.normalizer.normalize_str(_encodable(text))
        pieces = self._tokenizer.pre_tokenizer.pre_tokenize_str(normalized)
        return [self._ids[word] for piece, _ in pieces for word in merge_with_dropout(piece, self._ranks, kept)]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {pair: rank for rank, pair in enumerate(_merges(self._tokenizer))}

    @cached_property
    def _ids(self) -> dict[str, int]:
        return self._tokenizer.get_vocab()


def _kept(stream: random.Random, dropout: float) -> Iterator[bool]:
    """Whether a merge is done. Python keeps the numbers of `random` the same in all its versions."""
    while True:
        yield stream.random() >= dropout


def _encodable(text: str) -> str:
    """Half a character, as a command line in another encoding gives, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _tokenizer(merges: Sequence[tuple[str, str]]) -> Any:
    """The library's tokenizer of these merges: ids of bytes, then of what merges make, in their order."""
    library = _library()
    words = dict.fromkeys([*_alphabet(), *(left + right for left, right in merges)])
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = library.Tokenizer(library.models.BPE(vocab=vocab, merges=list(merges)))
    white_space = library.normalizers.Replace(library.Regex(r"\s+"), " ")
    tokenizer.normalizer = library.normalizers.Sequence(
        [library.normalizers.Lowercase(), white_space, library.normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _trainer(num_words: int) -> Any:
    return _library().trainers.BpeTrainer(
        vocab_size=num_words, min_frequency=2, initial_alphabet=_alphabet(), show_progress=False
    )


def _alphabet() -> list[str]:
    """The characters that stand for bytes, in a fixed order."""
    return sorted(_library().pre_tokenizers.ByteLevel.alphabet())


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def _library() -> Any:
    """Hugging Face's `tokenizers`, imported when a caption is read: most priors have none.

    Once it has used threads, releases before 0.23 print a warning when the process forks, as data loaders do.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers
