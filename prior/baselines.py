"""What a prior has to beat: unigram and bigram models of the codes."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from prior.sequence import refuse_outside


@dataclass(frozen=True)
class BaselineBits:
    """Mean bits per token on the codes that were scored."""

    unigram: float
    bigram: float


class UnigramBigram:
    """Unigram and bigram of the raster sequence, each depth with tables of its own.

    The bigram is given the code just before (a mark at the start) and smoothed by interpolated Kneser-Ney (Chen and
    Goodman 1998, section 2.7): a discount d = n1 / (n1 + 2 n2), from the counts of pairs seen once and twice, is taken
    off each count and handed out by the number of different predecessors of a code. The unigram adds half a count to
    each code (Krichevsky and Trofimov). Only pairs that occur are stored.
    """

    def __init__(self, num_codes: int):
        self.num_codes = num_codes
        self.pairs = torch.empty(0, dtype=torch.long)
        self.counts = torch.empty(0, dtype=torch.long)
        self.depth = 0

    def fit(self, codes: Int[Tensor, "b h w q"]) -> "UnigramBigram":
        """Count these training codes on top of those before. Raises ValueError for codes outside [0, num_codes)."""
        if self.depth not in (0, codes.shape[-1]):
            raise ValueError(f"codes have depth {codes.shape[-1]}, those before had {self.depth}")
        self.depth = codes.shape[-1]
        pairs, counts = self._encode(codes).flatten().unique(return_counts=True)
        self.pairs, inverse = torch.cat([self.pairs, pairs]).unique(return_inverse=True)
        counts = torch.cat([self.counts, counts])
        self.counts = torch.zeros_like(self.pairs).index_add_(0, inverse, counts)
        return self

    def bits_per_token(self, codes: Int[Tensor, "b h w q"]) -> BaselineBits:
        """Mean bits of held-out codes. ValueError before `fit`, for another depth, for codes out of range."""
        if codes.shape[-1] != self.depth:
            raise ValueError(f"codes have depth {codes.shape[-1]}, the fit saw depth {self.depth} (0: nothing yet)")
        pairs = self._encode(codes).flatten()
        return BaselineBits(*(float(-p.log2().mean()) for p in self._probabilities(pairs)))

    def _encode(self, codes: Int[Tensor, "b h w q"]) -> Int[Tensor, "b n"]:
        """(depth, previous, code) of each position as one number; previous = num_codes at the start."""
        codes = codes.cpu().long()
        refuse_outside(codes, self.num_codes, "codes")
        sequence = rearrange(codes, "b h w q -> b (h w q)")
        previous = torch.nn.functional.pad(sequence, (1, 0), value=self.num_codes)[:, :-1]
        depths = torch.arange(sequence.shape[1]) % self.depth
        return (depths * (self.num_codes + 1) + previous) * self.num_codes + sequence

    def _probabilities(self, pairs: Int[Tensor, " t"]) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"]]:
        size = self.num_codes
        seen_context, seen_code = self.pairs // size, self.pairs // (size * (size + 1)) * size + self.pairs % size
        contexts, codes = pairs // size, pairs // (size * (size + 1)) * size + pairs % size
        tokens, kinds = (self._sums(seen_code, values, self.depth * size) for values in (self.counts, None))
        context_tokens, context_kinds = (
            self._sums(seen_context, values, self.depth * (size + 1)) for values in (self.counts, None)
        )
        unigram = self._half_added(tokens)[codes]
        lower = self._half_added(kinds)[codes]

        once, twice = int((self.counts == 1).sum()), int((self.counts == 2).sum())
        discount = (once + 1) / (once + 2 * twice + 2)  # one added to either count: never 0, never 1 or more
        place = torch.searchsorted(self.pairs, pairs).clamp(max=len(self.pairs) - 1)
        count = torch.where(self.pairs[place] == pairs, self.counts[place], 0).double()
        total, followers = context_tokens[contexts], context_kinds[contexts]
        seen = ((count - discount).clamp(min=0) + discount * followers * lower) / total.clamp(min=1)
        return unigram, torch.where(total > 0, seen, lower)

    def _sums(self, index: Tensor, values: Tensor | None, length: int) -> Float[Tensor, " l"]:
        return torch.bincount(index, values if values is None else values.double(), minlength=length).double()

    def _half_added(self, counts: Float[Tensor, " l"]) -> Float[Tensor, " l"]:
        table = counts.view(self.depth, self.num_codes) + 0.5
        return (table / table.sum(dim=-1, keepdim=True)).flatten()
