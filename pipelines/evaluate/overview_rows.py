"""What the overview of a pipeline shows: held-out images through the tokenizer, and as many new ones."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from pipelines.evaluate.overview_figure import OverviewRow
from pipelines.models.image_pipeline import ImageGenerationPipeline


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
    return [
        OverviewRow(images[i], codes[i, ..., 0].cpu(), rebuilt[i], drawn.tokens[i, ..., 0], samples[i], names[i])
        for i in range(len(images))
    ]
