"""What was kept of completed images: in a figure, in numbers and in words."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from pipelines.base.image_grids import save_grid, to_uint8
from pipelines.data.image_files import open_image
from pipelines.data.preprocess import MAX_SIZE
from pipelines.models.image_masks import pixels_of
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.models.masked_images import MaskedImages
from prior import kept_after_a_draw
from tokenizer import CodeGrids, split_codes

MOST_ROWS, MOST_COMPLETIONS = 16, 8  # on the figure
GREY = 128
LONGEST_TITLE = 32
MOST_PIXELS = MAX_SIZE**2


def draw_completions_figure(
    output: Path, pipeline: ImageGenerationPipeline, masked: MaskedImages, names: Sequence[str], titles: Sequence[str]
) -> Path:
    """`completions.png`, a row for each of the first images: the image, what is kept of it, what the tokenizer makes of
    all of its tokens, and its completions. Redrawn cells are grey. Completion c is of image c % n.

    `titles`: the label or prompt of each image.
    """
    count = len(masked.codes)
    shown, completions = min(count, MOST_ROWS), min(len(names) // count, MOST_COMPLETIONS)
    redrawn = pixels_of(masked.redrawn[:shown], pipeline.prior.spec.code_grids, masked.image.shape[-1])
    originals = to_uint8(masked.image[:shown])
    kept = torch.where(redrawn[:, None], torch.tensor(GREY, dtype=torch.uint8), originals)
    rebuilt = to_uint8(pipeline.decode(masked.codes[:shown]))
    tiles = []
    for row in range(shown):
        drawn = [open_image(output / names[row + number * count], MOST_PIXELS) for number in range(completions)]
        tiles += [originals[row], kept[row], rebuilt[row], *drawn]
    columns = ["image", "kept", "rebuilt", *(str(number + 1) for number in range(completions))]
    rows = [shorten(title, LONGEST_TITLE, placeholder="…") for title in titles[:shown]]
    path = output / "completions.png"
    return save_grid(path, tiles, len(columns), row_labels=rows if any(rows) else None, column_labels=columns)


def kept_tokens(masked: MaskedImages, grids: CodeGrids) -> dict[str, Any]:
    """What was kept of the first image, which is the same for all under one mask.

    `cells`: of each level a text for each row of cells, # where they are redrawn.

    `kept_after_a_draw` counts the kept tokens that the draws before them did not see; without any the draws are exact.
    """
    redrawn = masked.redrawn[:1]
    levels = [level[0].any(-1) for level in split_codes(redrawn, grids)]
    return {
        "tokens": redrawn.numel(),
        "redrawn": int(redrawn.sum()),
        "kept_after_a_draw": int(kept_after_a_draw(masked.kept_codes[:1]).sum()),
        "exact": masked.exact,
        "cells": [["".join(".#"[cell] for cell in row) for row in level.tolist()] for level in levels],
    }


def kept_in_words(kept: dict[str, Any], num_candidates: int) -> str:
    """A line for a person."""
    counts = f"{kept['redrawn']:,} of {kept['tokens']:,} tokens redrawn"
    if kept["exact"]:
        return f"{counts}, exactly: all kept tokens come before them"
    later = f"{kept['kept_after_a_draw']:,} kept tokens come after the first redrawn one"
    return f"{counts}, approximately: {later} ({num_candidates:,} candidate{'s' * (num_candidates > 1)})"
