"""What the overview of a pipeline shows: held-out images through the tokenizer, and as many new ones."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from pipelines.evaluate.overview_figure import OverviewRow
from pipelines.models.image_pipeline import ImageGenerationPipeline
from tokenizer import split_codes


@torch.no_grad()
def overview_rows(
    pipeline: ImageGenerationPipeline, images: UInt8[Tensor, "n c h w"], labels: Sequence[int], seed: int
) -> list[OverviewRow]:
    """Each image with its codes and its reconstruction, beside a sample of the label at its place (none: no labels)."""
    codes = pipeline.tokenizer.model.encode(images.to(pipeline.device)).codes
    assert codes is not None  # the tokenizer of an image pipeline is discrete
    rebuilt = pipeline.decode(codes)
    drawn = pipeline(
        list(labels) or None,
        num_images_per_prompt=1 if labels else len(images),
        generator=seed,
        output_type="pt",
    )
    samples = torch.as_tensor(drawn.images)
    names = [pipeline.classes[label] if pipeline.classes and label is not None else "" for label in drawn.labels]
    grids = pipeline.tokenizer.model.code_grids
    own, new = split_codes(codes.cpu(), grids), split_codes(drawn.tokens, grids)
    return [
        OverviewRow(
            images[i],
            tuple(level[i, ..., 0] for level in own),
            rebuilt[i],
            tuple(level[i, ..., 0] for level in new),
            samples[i],
            names[i],
        )
        for i in range(len(images))
    ]
