"""How the codes of every level are used, and of all of them together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from tokenizer.code_grids import CodeGrids, split_codes
from tokenizer.codebook_health import SEVERITY, CodebookHealth, CodeUsage, Verdict


class LevelUsage:
    """Counts the codes of each grid over a window of images, on `device`."""

    def __init__(self, grids: CodeGrids, device: torch.device | str = "cpu"):
        self.grids = grids
        self.levels = [CodeUsage(grid.num_codes, grid.num_quantizers, device) for grid in grids]

    def update(self, codes: Integer[Tensor, " b *codes"]) -> None:
        """Adds the codes of some images. ValueError if they do not stand on these grids."""
        for level, part in zip(self.levels, split_codes(codes, self.grids), strict=True):
            level.update(part)

    def all_reduce(self) -> None:
        """Makes one window of the windows of all ranks; does nothing in a single process."""
        for level in self.levels:
            level.all_reduce()

    def report(self, embeddings: Sequence[Float[Tensor, "_ _ _"] | None] | None = None) -> tuple[CodebookHealth, ...]:
        """The state of each level, coarse to fine; see `CodeUsage.report`."""
        known = embeddings or [None] * len(self.levels)
        return tuple(level.report(embedding) for level, embedding in zip(self.levels, known, strict=True))


@dataclass(frozen=True)
class OverallHealth:
    """All levels together: `used` of `size` codes of all codebooks, `tokens` of the window.

    levels: the state of each, coarse to fine. perplexity: their mean. verdict, reason: those of the worst.
    """

    levels: tuple[CodebookHealth, ...]
    size: int
    used: int
    perplexity: float
    tokens: int
    verdict: Verdict
    reason: str

    @property
    def usage(self) -> float:
        """The share of all codes that was seen."""
        return self.used / self.size

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, fit for JSON, without the counts; of several levels, each of them too."""
        each = [{name: x for name, x in level.as_dict().items() if name != "counts"} for level in self.levels]
        if len(each) == 1:
            return each[0]
        names = ("usage", "perplexity", "tokens", "verdict", "reason")
        return {name: getattr(self, name) for name in names} | {"levels": each}


def overall_health(levels: Sequence[CodebookHealth]) -> OverallHealth:
    """What the figures of the levels, coarse to fine, say together; of one level they are its own."""
    worst = max(range(len(levels)), key=lambda i: (SEVERITY.index(levels[i].verdict), -levels[i].usage))
    reason = levels[worst].reason
    return OverallHealth(
        levels=tuple(levels),
        size=sum(level.counts.numel() for level in levels),
        used=sum(int((level.counts > 0).sum()) for level in levels),
        perplexity=sum(level.perplexity for level in levels) / len(levels),
        tokens=sum(level.tokens for level in levels),
        verdict=levels[worst].verdict,
        reason=f"at level {worst + 1} of {len(levels)}, {reason}" if len(levels) > 1 else reason,
    )
