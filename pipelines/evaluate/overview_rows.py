"""What the overview of a pipeline shows: held-out images through the tokenizer, and as many new ones."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from pipelines.evaluate.overview_figure import OverviewRow
from pipelines.models.conditions import ImageCondition
from pipelines.models.image_pipeline import ImageGenerationPipeline
from tokenizer import split_codes


@torch.no_grad()
def overview_rows(
    pipeline: ImageGenerationPipeline,
    images: UInt8[Tensor, "n c h w"],
    conditions: Sequence[ImageCondition],
    seed: int,
) -> list[OverviewRow]:
    """Each image with its codes and its reconstruction, beside a sample under the condition at its place."""
    codes = pipeline.tokenizer.model.encode(images.to(pipeline.device)).codes
    assert codes is not None  # the tokenizer of an image pipeline is discrete
    rebuilt = pipeline.decode(codes)
    drawn = pipeline(
        [each.prompt for each in conditions if each.prompt is not None] or None,
        label=[each.label for each in conditions if each.label is not None] or None,
        num_images_per_prompt=len(images) if conditions[0].is_null else 1,
        generator=seed,
        output_type="pt",
    )
    samples = torch.as_tensor(drawn.images)
    titles = [each.title(pipeline.classes) for each in conditions]
    grids = pipeline.tokenizer.model.code_grids
    own, new = split_codes(codes.cpu(), grids), split_codes(drawn.tokens, grids)
    return [
        OverviewRow(
            images[i],
            tuple(level[i, ..., 0] for level in own),
            rebuilt[i],
            tuple(level[i, ..., 0] for level in new),
            samples[i],
            titles[i],
        )
        for i in range(len(images))
    ]
