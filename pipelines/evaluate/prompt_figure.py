"""Samples under the prompts that they were drawn for; prompts that training has never shown are marked."""

from collections.abc import Collection
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from pipelines.base.first_process import first_process
from pipelines.base.image_grids import save_grid
from pipelines.base.process_store import Processes
from pipelines.evaluate.samples import Samples
from pipelines.tokens.captions import unseen_captions
from pipelines.tokens.dataset import TokenSplit

PROMPTS, MARK = "prompts.png", "*"
MOST_PROMPTS, MOST_SAMPLES, COLUMNS = 32, 4, 4  # prompts; samples of each; prompts a row
WIDTH, GAP = 280, 2  # about the pixels of a prompt's samples, and those between two of them


def report_prompts(
    path: Path, samples: Samples, train: TokenSplit, processes: Processes | None = None
) -> dict[str, int]:
    """Draw the samples under their prompts, and count the prompts: all `distinct` ones, and those `unseen`, which are,
    whatever their case, the caption of no row of the split `train`.
    """
    unseen = unseen_captions(train, samples.prompts or ())
    with first_process(processes) as first:
        if first:
            draw_prompts(path, samples, unseen)
    return {"distinct": len(set(samples.prompts or ())), "unseen": len(unseen)}


def draw_prompts(path: str | Path, samples: Samples, unseen: Collection[str]) -> Path:
    """Write one PNG: of each of the first prompts the first samples side by side, the prompt below them, marked where
    it is in `unseen`.

    Raises:
        ValueError: the samples have no prompts.
        UserError: a sample cannot be read.
    """
    if samples.prompts is None:
        raise ValueError("samples without prompts, expected some that were drawn for prompts")
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(samples.prompts):
        rows.setdefault(prompt, []).append(row)
    shown = dict(list(rows.items())[:MOST_PROMPTS])
    each = min(MOST_SAMPLES, *map(len, shown.values()))
    tiles = [_side_by_side(samples, places[:each]) for places in shown.values()]
    titles = [f"{MARK} {prompt}" if prompt in unseen else prompt for prompt in shown]
    return save_grid(path, tiles, COLUMNS, captions=titles, scale=max(1, WIDTH // tiles[0].shape[-1]))


def _side_by_side(samples: Samples, rows: list[int]) -> UInt8[Tensor, "c h w"]:
    images = samples.read_images(rows)
    gap = torch.full((*images.shape[1:3], GAP), 255, dtype=torch.uint8)
    return torch.cat([part for image in images for part in (image, gap)][:-1], dim=-1)
