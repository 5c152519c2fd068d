"""Codes on several grids, coarse to fine, each finer one conditioned on those above it: the bottleneck of VQ-VAE-2."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Integer
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.backbones import BackboneConfig, ConvConfig, build_decoder, build_encoder
from tokenizer.bottlenecks.contract import BottleneckOutput, Quantizer
from tokenizer.bottlenecks.quantizers import QuantizerConfig, build_quantizer
from tokenizer.bottlenecks.vq import VQConfig
from tokenizer.code_grids import CodeGrid, CodeGrids, join_codes, split_codes
from tokenizer.options import Options

Level = Annotated[QuantizerConfig, Field(discriminator="kind")]


class MultilevelConfig(Options):
    """`levels`: a quantizer for each grid, coarse to fine. The finest has the grid of the encoder's features.

    width: channels of the features of every grid.
    backbone: the networks between a grid and the next coarser one, there and back.
    """

    continuous: ClassVar[bool] = False
    random: ClassVar[bool] = False
    kind: Literal["multilevel"] = "multilevel"
    levels: tuple[Level, ...] = Field(default=(VQConfig(), VQConfig()), min_length=2, max_length=8)
    width: int = Field(default=64, ge=1)
    backbone: BackboneConfig = ConvConfig(widths=(64,))

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Raises ValueError when the backbone cannot make a grid of these rows and columns coarser so often."""
        self.sides(grid[0])

    def sides(self, side: int) -> tuple[int, ...]:
        """The sides of the grids, coarse to fine, behind features of side x side positions.

        Raises ValueError as `check_grid` does.
        """
        sides = [side]
        for _ in self.levels[1:]:
            try:
                sides.insert(0, self.backbone.grid_side(sides[0]))
            except ValueError as error:
                raise ValueError(f"bottleneck.backbone, between a grid and the next coarser one: {error}") from error
        return tuple(sides)

    def encode_config(self) -> dict[str, Any]:
        nested = {"levels": [level.encode_config() for level in self.levels], "backbone": self.backbone.encode_config()}
        return super().encode_config() | nested


class Multilevel(nn.Module):
    """The hierarchy of VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446, algorithm 1 and figure 2a).

    Encoders make the features of each grid from those of the next finer one. From the coarsest grid down, the features
    of a level are quantized together with what a decoder makes of the latents of all coarser levels (concatenation and
    a 1x1 convolution). z holds the latents of all levels side by side, coarse to fine, the coarser ones repeated over
    the positions of the finest grid. A term is the sum of that term of all levels.

    num_codes, num_quantizers: the largest of any level; `code_grids` has those of each.
    """

    embedding = None

    def __init__(self, config: MultilevelConfig, grid: tuple[int, int]):
        super().__init__()
        self.config = config
        sides, self.in_channels = config.sides(grid[0]), config.width
        quantizers = [build_quantizer(level) for level in config.levels]
        dims = [quantizer.dim for quantizer in quantizers]
        self.dim = sum(dims)
        self.num_codes = max(quantizer.num_codes or 0 for quantizer in quantizers)
        self.num_quantizers = max(quantizer.num_quantizers for quantizer in quantizers)
        self.quantizers = nn.ModuleList(cast(nn.Module, quantizer) for quantizer in quantizers)
        width, finer = config.width, range(1, len(sides))
        self.encoders = nn.ModuleList(build_encoder(config.backbone, width, width, sides[i]) for i in finer)
        self.decoders = nn.ModuleList(build_decoder(config.backbone, sum(dims[:i]), width, sides[i]) for i in finer)
        self.projections = nn.ModuleList(
            nn.Conv2d(2 * width if i else width, quantizer.in_channels, 1) for i, quantizer in enumerate(quantizers)
        )
        self.grids = self.code_grids(*grid)

    @property
    def _quantizers(self) -> list[Quantizer]:
        """`quantizers` for the type checker, which sees plain modules in a ModuleList."""
        return [cast(Quantizer, quantizer) for quantizer in self.quantizers]

    @property
    def embeddings(self) -> tuple[Float[Tensor, "q k d"] | None, ...]:
        return tuple(quantizer.embedding for quantizer in self._quantizers)

    def code_grids(self, rows: int, columns: int) -> CodeGrids:
        return tuple(
            CodeGrid(side, side, quantizer.num_quantizers, quantizer.num_codes or 0)
            for side, quantizer in zip(self.config.sides(rows), self._quantizers, strict=True)
        )

    def forward(self, h: Float[Tensor, "b c h w"], step: int = 0) -> BottleneckOutput:
        outputs = [output for _, output in self._levels(h, step)]
        codes = [output.codes for output in outputs if output.codes is not None]
        return BottleneckOutput(
            _side_by_side([output.z for output in outputs]),
            join_codes(codes),
            terms=_summed([output.terms for output in outputs]),
            batch_terms=_summed([output.batch_terms for output in outputs]),
            metrics=_summed([output.metrics for output in outputs]),
        )

    def _levels(self, h: Float[Tensor, "b c h w"], step: int) -> list[tuple[Tensor, BottleneckOutput]]:
        """Of each level, coarse to fine, the features that its quantizer was given, and its output."""
        features = [h.to(next(self.parameters()).dtype)]
        for encoder in reversed(self.encoders):
            features.insert(0, encoder(features[0]))
        found: list[tuple[Tensor, BottleneckOutput]] = []
        for level, own in enumerate(features):
            if level:
                coarser = _side_by_side([output.z for _, output in found])
                own = torch.cat([self.decoders[level - 1](coarser.to(own.dtype)), own], dim=1)
            projected = self.projections[level](own)
            found.append((projected, self._quantizers[level](projected, step)))
        return found

    def distances(self, h: Float[Tensor, "b c h w"], codes: Integer[Tensor, "b n"]) -> Float[Tensor, "b h w"]:
        """The sum over the levels, each given the features that follow from the codes that it really gets."""
        levels = zip(self._quantizers, self._levels(h, 0), split_codes(codes, self.grids), strict=True)
        each = [quantizer.distances(projected, part)[:, None] for quantizer, (projected, _), part in levels]
        return _side_by_side(each).sum(1)

    def codes_to_latents(self, codes: Integer[Tensor, "b n"]) -> Float[Tensor, "b d h w"]:
        """The latents that `forward` gives these codes in evaluation.

        Raises ValueError for another number of codes, or when a code is out of the range of its level.
        """
        levels = zip(self._quantizers, split_codes(codes, self.grids), strict=True)
        return _side_by_side([quantizer.codes_to_latents(part) for quantizer, part in levels])

    def encode_state(self) -> dict[str, Tensor]:
        networks = {"encoders": self.encoders, "decoders": self.decoders, "projections": self.projections}
        state = {f"{part}.{name}": t for part, network in networks.items() for name, t in network.state_dict().items()}
        for level, quantizer in enumerate(self._quantizers):
            state |= {f"quantizers.{level}.{name}": tensor for name, tensor in quantizer.encode_state().items()}
        return state

    def after_step(self, step: int) -> None:
        for quantizer in self._quantizers:
            quantizer.after_step(step)


def _side_by_side(levels: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b d h w"]:
    """The channels of all levels on the grid of the last, the finest."""
    size = levels[-1].shape[2:]
    return torch.cat([F.interpolate(level, size=size) for level in levels[:-1]] + [levels[-1]], dim=1)


def _summed(levels: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sum over the levels that have it, by name."""
    total: dict[str, Tensor] = {}
    for level in levels:
        for name, value in level.items():
            total[name] = total[name] + value if name in total else value
    return total
