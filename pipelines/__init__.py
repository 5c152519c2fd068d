"""Everything that reads, writes, trains, samples or shows. Nothing in `tokenizer` or `prior` imports it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.models.completion import complete_images
    from pipelines.models.image_pipeline import ImageGenerationPipeline

__all__ = ["ImageGenerationPipeline", "complete_images"]


def __getattr__(name: str) -> Any:
    """Imported on first use, so that `smalti --help` does not wait for torch."""
    if name == "ImageGenerationPipeline":
        from pipelines.models.image_pipeline import ImageGenerationPipeline

        return ImageGenerationPipeline
    if name == "complete_images":
        from pipelines.models.completion import complete_images

        return complete_images
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
