"""Everything that reads, writes, trains, samples or shows. Nothing in `tokenizer` or `prior` imports it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.models.image_pipeline import ImageGenerationPipeline

__all__ = ["ImageGenerationPipeline"]


def __getattr__(name: str) -> Any:
    """Imported on first use, so that `smalti --help` does not wait for torch."""
    if name == "ImageGenerationPipeline":
        from pipelines.models.image_pipeline import ImageGenerationPipeline

        return ImageGenerationPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
