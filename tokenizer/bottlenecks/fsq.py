"""Finite scalar quantization: round each channel to a few levels; nothing to learn, nothing to collapse."""

from math import prod
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Integer
from pydantic import Field, model_validator
from torch import Tensor, nn

from tokenizer.bottlenecks.contract import MAX_CODES, BottleneckOutput, NearestLatent, check_codes, count_nonfinite
from tokenizer.options import Options
from tokenizer.straight_through import straight_through


class FSQConfig(Options):
    """`levels` of each channel; their product is the number of codes. The paper (table 1) advises at least 5 each."""

    continuous: ClassVar[bool] = False
    random: ClassVar[bool] = False
    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=2, le=512)], ...] = Field(
        default=(8, 5, 5, 5), min_length=1, examples=[(2, 3, 4)]
    )

    @model_validator(mode="after")
    def _codes_have_an_index(self):
        if prod(self.levels) > MAX_CODES:
            raise ValueError(f"levels {self.levels} make {prod(self.levels):,} codes, expected at most {MAX_CODES:,}")
        return self


class FSQ(NearestLatent, nn.Module):
    """Finite scalar quantization (arXiv 2309.15505).

    A code is its channels' digits in mixed radix, the first channel least significant. Departures from the paper's
    appendix A.1, as in its authors' later code: the shift of an even number of levels is atanh, where the paper prints
    tan, so that 0 stays 0; and the range is a thousandth wider rather than narrower. With 2 levels that shift would lie
    where tanh is flat (a gradient of 0.001), so these have none: 0 is then the boundary between the two.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig):
        super().__init__()
        self.config = config
        self.in_channels = self.dim = len(config.levels)
        self.num_codes, self.num_quantizers = prod(config.levels), 1
        # Derived from the configuration, hence kept out of checkpoints.
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        basis = [prod(config.levels[:i]) for i in range(self.dim)]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def forward(self, h: Float[Tensor, "b d h w"], step: int = 0) -> BottleneckOutput:
        bounded = self._bound(h.float().movedim(1, -1))
        half_width = self.levels // 2
        rounded = bounded.round().nan_to_num(nan=0.0)  # NaN gets the code of zero features
        codes = ((rounded.long() + half_width) * self.basis).sum(-1, keepdim=True)
        z = (straight_through(bounded, rounded) if h.requires_grad else rounded) / half_width
        metrics = {"nonfinite_vectors": count_nonfinite(h)} if self.training else {}
        return BottleneckOutput(z.movedim(-1, 1), codes, metrics=metrics)

    def _bound(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Squashes channel i into an interval that rounds to exactly levels[i] integers (section 3.1, equation 1)."""
        half_range = (self.levels - 1) * (1 + 1e-3) / 2
        offset = (self.levels % 2 == 0) * 0.5
        shift = torch.where(self.levels > 2, (offset / half_range).atanh(), 0)
        return (h + shift).tanh() * half_range - offset

    def project(self, h: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Bounded features before rounding, on the scale of the latents."""
        return (self._bound(h.float().movedim(1, -1)) / (self.levels // 2)).movedim(-1, 1)

    def codes_to_latents(self, codes: Integer[Tensor, "b h w 1"]) -> Float[Tensor, "b d h w"]:
        """The latents, each channel in [-1, 1], that `forward` gives these codes.

        Raises ValueError when a code is out of range.
        """
        half_width = self.levels // 2
        digits = check_codes(codes, self.num_codes) // self.basis % self.levels
        return ((digits - half_width).float() / half_width).movedim(-1, 1)
