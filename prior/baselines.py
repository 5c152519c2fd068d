"""What a prior has to beat: unigram and bigram models of the codes, fitted by counting."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from prior.pair_counts import PairCounts
from prior.sequence import check_range

CHUNK = 2**20
"""Codes that are counted at a time."""


@dataclass(frozen=True)
class BaselineBits:
    """Mean bits per token on the codes that were scored."""

    unigram: float
    bigram: float


@dataclass(frozen=True)
class _Tables:
    """What the counts of pairs say about codes and contexts. All are indexed with the quantizer as the major axis."""

    unigram: Float[Tensor, " qk"]
    lower: Float[Tensor, " qk"]
    """The distribution that the bigram falls back on: codes by their number of different predecessors."""
    context_tokens: Float[Tensor, " qk1"]
    context_kinds: Float[Tensor, " qk1"]
    discount: float


class CountBaselines:
    """Unigram and bigram of the codes in raster order, each quantizer with tables of its own.

    The bigram is given the code just before (a mark at the start) and smoothed by interpolated Kneser-Ney (Chen and
    Goodman 1998, section 2.7): a discount d = n1 / (n1 + 2 n2), from the counts of pairs seen once and twice, is taken
    off each count and handed out by the number of different predecessors of a code. The unigram adds half a count to
    each code (Krichevsky and Trofimov). Memory follows the number of different pairs, not of tokens.
    """

    def __init__(self, num_codes: int):
        self.num_codes = num_codes
        self.num_quantizers = 0
        self.pairs = PairCounts(0)
        self._tables: _Tables | None = None

    def fit(self, codes: Integer[Tensor, "b h w q"]) -> "CountBaselines":
        """Count these training codes, of any integer dtype, on top of those before.

        Raises ValueError for codes outside [0, num_codes) or for another number of quantizers.
        """
        if self.num_quantizers not in (0, codes.shape[-1]):
            raise ValueError(f"codes have {codes.shape[-1]} quantizers, those before had {self.num_quantizers}")
        if not self.num_quantizers:
            self._set_quantizers(codes.shape[-1])
        for pairs in self._pair_chunks(codes):
            self.pairs.add(pairs)
        self._tables = None
        return self

    def bits_per_token(self, codes: Integer[Tensor, "b h w q"]) -> BaselineBits:
        """Mean bits of held-out codes. ValueError before `fit`, for other quantizers, for codes out of range."""
        if codes.shape[-1] != self.num_quantizers:
            raise ValueError(
                f"codes have {codes.shape[-1]} quantizers, the fit saw {self.num_quantizers} (0: nothing yet)"
            )
        sums = torch.zeros(2, dtype=torch.float64)
        for pairs in self._pair_chunks(codes):
            kinds, counts = pairs.unique(return_counts=True)
            for i, probabilities in enumerate(self.probabilities(kinds)):
                sums[i] -= (counts * probabilities.log2()).sum()
        return BaselineBits(*(sums / codes.numel()).tolist())

    def probabilities(self, pairs: Int[Tensor, " t"]) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"]]:
        """Unigram and bigram probability of sorted pairs; a pair is (quantizer, previous, code) as one number."""
        tables, (contexts, codes) = self._summed(), self._split(pairs)
        lower, total = tables.lower[codes], tables.context_tokens[contexts]
        count = self.pairs.of(pairs).double()
        spread = tables.discount * tables.context_kinds[contexts] * lower
        bigram = ((count - tables.discount).clamp(min=0) + spread) / total.clamp(min=1)
        return tables.unigram[codes], torch.where(total > 0, bigram, lower)

    def to_tensors(self) -> dict[str, Tensor]:
        """All that `from_tensors` needs, as plain tensors for a safetensors file."""
        sizes = {"num_codes": torch.tensor(self.num_codes), "num_quantizers": torch.tensor(self.num_quantizers)}
        return sizes | self.pairs.to_tensors()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "CountBaselines":
        """Inverse of `to_tensors`. Raises ValueError for tensors that it did not make."""
        rest = dict(tensors)
        try:
            num_codes, num_quantizers = (int(rest.pop(name)) for name in ("num_codes", "num_quantizers"))
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"expected the numbers num_codes and num_quantizers, found {sorted(tensors)}") from error
        if not 0 < num_codes <= 2**24 or not 0 <= num_quantizers <= 2**10:
            raise ValueError(f"found num_codes={num_codes}, num_quantizers={num_quantizers}: out of range")
        baselines = cls(num_codes)
        baselines._set_quantizers(num_quantizers)
        baselines.pairs.load_tensors(rest)
        return baselines

    def _set_quantizers(self, num_quantizers: int) -> None:
        self.num_quantizers = num_quantizers
        self.pairs = PairCounts(num_quantizers * (self.num_codes + 1) * self.num_codes)

    def _pair_chunks(self, codes: Integer[Tensor, "b h w q"]) -> Iterator[Int[Tensor, " t"]]:
        """(quantizer, previous, code) of each position as one number; previous = num_codes at the start of an image."""
        for rows in codes.split(max(1, CHUNK // max(1, codes[0].numel()))) if len(codes) else ():
            sequence = rows.flatten(1).cpu().long()
            check_range(sequence, self.num_codes, "codes")
            previous = torch.nn.functional.pad(sequence, (1, 0), value=self.num_codes)[:, :-1]
            quantizers = torch.arange(sequence.shape[1]) % self.num_quantizers
            yield ((quantizers * (self.num_codes + 1) + previous) * self.num_codes + sequence).flatten()

    def _split(self, pairs: Int[Tensor, " t"]) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"]]:
        """(quantizer, previous) and (quantizer, code) of each pair, as one number each."""
        quantizers = pairs // (self.num_codes * (self.num_codes + 1))
        return pairs // self.num_codes, quantizers * self.num_codes + pairs % self.num_codes

    def _summed(self) -> _Tables:
        if self._tables is None:
            self._tables = self._sum_counts()
        return self._tables

    def _sum_counts(self) -> _Tables:
        tokens, kinds = torch.zeros(2, self.num_quantizers * self.num_codes, dtype=torch.float64)
        context_tokens, context_kinds = torch.zeros(2, self.num_quantizers * (self.num_codes + 1), dtype=torch.float64)
        once = twice = 0
        for pairs, counts in self.pairs:
            contexts, codes = self._split(pairs)
            weights, ones = counts.double(), torch.ones(len(counts), dtype=torch.float64)
            tokens.index_add_(0, codes, weights)
            kinds.index_add_(0, codes, ones)
            context_tokens.index_add_(0, contexts, weights)
            context_kinds.index_add_(0, contexts, ones)
            once, twice = once + int((counts == 1).sum()), twice + int((counts == 2).sum())
        discount = (once + 1) / (once + 2 * twice + 2)  # one added to either count: never 0, never 1 or more
        return _Tables(self._half_added(tokens), self._half_added(kinds), context_tokens, context_kinds, discount)

    def _half_added(self, counts: Float[Tensor, " qk"]) -> Float[Tensor, " qk"]:
        table = counts.view(self.num_quantizers, self.num_codes) + 0.5
        return (table / table.sum(dim=-1, keepdim=True)).flatten()
