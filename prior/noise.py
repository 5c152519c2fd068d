"""Gumbel noise that is a pure function of (seed, position, code): no state to keep, and no order in which to draw it.

The code that is most likely after the noise has been added is a draw from the distribution (Gumbel-max, arXiv
1411.0030). The bits come from integer operations that wrap, so that they are the same on every device; the logarithms
are equal up to rounding.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

CPU_BLOCK, BLOCK = 2**17, 2**22
"""Numbers that are computed at once: on a CPU what its cache holds, elsewhere so many that few kernels start."""


class GumbelNoise:
    """The noise of a batch of images, by their seeds in [0, 2^64); computed for a block of positions at a time."""

    def __init__(self, seeds: Sequence[int], length: int, num_codes: int, device: torch.device):
        signed = [seed - 2**64 if seed >= 2**63 else seed for seed in seeds]
        self.seeds = torch.tensor(signed, device=device)
        self.length, self.num_codes = length, num_codes
        block = CPU_BLOCK if device.type == "cpu" else BLOCK
        self.size = max(1, block // (len(seeds) * num_codes))  # positions in a block
        self.start, self.block = length, torch.empty(0)

    def at(self, position: int) -> Float[Tensor, "b k"]:
        """The noise of all codes at one position."""
        if not self.start <= position < self.start + len(self.block):
            positions = torch.arange(position, min(position + self.size, self.length), device=self.seeds.device)
            self.start, self.block = position, gumbel(random_bits(self.seeds, positions, self.num_codes))
        return self.block[position - self.start]


def random_bits(seeds: Int[Tensor, " b"], positions: Int[Tensor, " n"], num_codes: int) -> Int[Tensor, "n b k"]:
    """32 random bits for each position, seed and code.

    SplitMix64 (Steele, Lea, Flood 2014) makes two keys of seed and position. They enter the mixer `lowbias32` (Wellons
    2018, https://nullprogram.com/blog/2018/07/31/) of the code, one before and one within.
    """
    stream = _mix64(seeds + _GOLDEN64)
    row = _mix64(stream + (positions[:, None] + 1) * _GOLDEN64)[..., None]
    before, within = (row << 32 >> 32).int(), (row >> 32).int()
    x = before + torch.arange(num_codes, dtype=torch.int32, device=seeds.device) * _signed(0x9E3779B9, 32)
    x = _xor_shifted(x, 16, 32).mul_(0x7FEB352D).bitwise_xor_(within)
    x = _xor_shifted(x, 15, 32).mul_(_signed(0x846CA68B, 32))
    return _xor_shifted(x, 16, 32)


def gumbel(bits: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """-log(-log(1 - v)), where the upper 31 bits are v in (0, 1).

    The large values, which decide, come from small v, where float32 is finest.
    """
    minus_v = (bits >> 1).bitwise_and_(2**31 - 1).float().add_(0.5).mul_(-(2**-31))
    return minus_v.clamp_(min=2**-24 - 1).log1p_().neg_().log_().neg_()


def _signed(number: int, bits: int) -> int:
    """The signed integer with the same bits."""
    return number - 2**bits if number >= 2 ** (bits - 1) else number


_GOLDEN64 = _signed(0x9E3779B97F4A7C15, 64)


def _mix64(z: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    z = _xor_shifted(z, 30, 64) * _signed(0xBF58476D1CE4E5B9, 64)
    z = _xor_shifted(z, 27, 64) * _signed(0x94D049BB133111EB, 64)
    return _xor_shifted(z, 31, 64)


def _xor_shifted(x: Int[Tensor, "..."], shift: int, bits: int) -> Int[Tensor, "..."]:
    """x ^ (x >> shift), where zeros move in from the left; torch's own shift of signed integers repeats the sign."""
    return (x >> shift).bitwise_and_((1 << (bits - shift)) - 1).bitwise_xor_(x)
