"""Which codes a split of a token dataset uses: figures and a figure of them."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from pipelines.base.first_process import first_process
from pipelines.models.checkpoint import load_tokenizer
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.health_figure import draw_health
from pipelines.tokens.statistics import codebook_health, window_of


@dataclass(frozen=True)
class CodeUsageFigures:
    """`used` of `size` codes, the perplexity of their frequencies, and a verdict in words."""

    size: int
    used: int
    perplexity: float
    verdict: str


def code_usage(
    tokenizer_folder: Path, tokens_folder: Path, split: str, figure: Path, accelerator: Accelerator
) -> CodeUsageFigures:
    """Counted on the first process, which also draws the figure; the same on all."""
    found: list[CodeUsageFigures | None] = [None]
    with first_process(accelerator) as first:
        if first:
            window = window_of(TokenDataset.open(tokens_folder).split(split))
            health = codebook_health(window)
            draw_health(figure, window, health, load_tokenizer(tokenizer_folder, accelerator.device).model)
            used = int((health.counts > 0).sum())
            found[0] = CodeUsageFigures(health.counts.numel(), used, float(health.perplexity), health.verdict)
    broadcast_object_list(found)
    assert found[0] is not None
    return found[0]
