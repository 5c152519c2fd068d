"""Which codes a split of a token dataset uses: figures and a figure of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from pipelines.base.first_process import first_process
from pipelines.models.checkpoint import load_tokenizer
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.health_figure import draw_health
from pipelines.tokens.statistics import codebook_health, window_of
from tokenizer import CodebookHealth, overall_health


@dataclass(frozen=True)
class CodeUsageFigures:
    """`used` of `size` codes, the perplexity of their frequencies, and a verdict in words.

    levels: the same of each level, coarse to fine, where there are several; the whole has their mean perplexity and
    worst verdict.
    """

    size: int
    used: int
    perplexity: float
    verdict: str
    levels: list["CodeUsageFigures"] = field(default_factory=list)


def code_usage(
    tokenizer_folder: Path, tokens_folder: Path, split: str, figure: Path, accelerator: Accelerator
) -> CodeUsageFigures:
    """Counted on the first process, which also draws the figure; the same on all."""
    found: list[CodeUsageFigures | None] = [None]
    with first_process(accelerator) as first:
        if first:
            window = window_of(TokenDataset.open(tokens_folder).split(split))
            levels = codebook_health(window)
            draw_health(figure, window, levels, load_tokenizer(tokenizer_folder, accelerator.device).model)
            found[0] = _figures(levels)
    broadcast_object_list(found)
    assert found[0] is not None
    return found[0]


def _figures(levels: Sequence[CodebookHealth]) -> CodeUsageFigures:
    health = overall_health(levels)
    each = [_figures([level]) for level in levels] if len(levels) > 1 else []
    return CodeUsageFigures(health.size, health.used, float(health.perplexity), health.verdict, each)
