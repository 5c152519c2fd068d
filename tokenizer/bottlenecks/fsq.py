"""Finite scalar quantization: round each channel to a few levels; nothing to learn, nothing to collapse."""

from math import prod
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tokenizer.bottlenecks.result import Bottlenecked
from tokenizer.straight_through import straight_through


class FSQConfig(BaseModel):
    """`levels` of each channel; their product is the number of codes. The paper (table 1) advises at least 5 each."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=2, le=512)], ...] = Field(default=(8, 5, 5, 5), min_length=1)


class FSQ(nn.Module):
    """Finite scalar quantization (arXiv 2309.15505).

    A code is its channels' digits in mixed radix, the first channel least significant. Departures from the
    paper's appendix A.1, after its authors' successors: the shift of an even number of levels is atanh, where the paper
    prints tan, so that 0 stays 0; and the range is a thousandth wider rather than narrower, so that 2 levels work.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig):
        super().__init__()
        self.features_in = self.dim = len(config.levels)
        self.num_codes, self.depth, self.embedding = prod(config.levels), 1, None
        # Derived from the configuration, hence kept out of checkpoints.
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        basis = [prod(config.levels[:i]) for i in range(self.dim)]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def forward(self, h: Float[Tensor, "b d h w"], step: int = 0) -> Bottlenecked:
        bounded = self._bound(h.float().movedim(1, -1))
        half_width = self.levels // 2
        rounded = bounded.round()
        codes = ((rounded.long() + half_width) * self.basis).sum(-1, keepdim=True)
        z = straight_through(bounded, rounded) / half_width
        return Bottlenecked(z.movedim(-1, 1), codes)

    def _bound(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Squashes channel i into an interval that rounds to exactly levels[i] integers (section 3.1, equation 1)."""
        half_range = (self.levels - 1) * (1 + 1e-3) / 2
        offset = (self.levels % 2 == 0) * 0.5
        return (h + (offset / half_range).atanh()).tanh() * half_range - offset

    def codes_to_latents(self, codes: Int[Tensor, "b h w 1"]) -> Float[Tensor, "b d h w"]:
        """The latents, each channel in [-1, 1], that `forward` gives these codes."""
        half_width = self.levels // 2
        digits = codes // self.basis % self.levels
        return ((digits - half_width).float() / half_width).movedim(-1, 1)
