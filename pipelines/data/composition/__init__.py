"""Pictures of objects whose factors are combined as a caption says, and a checker that reads them back."""

from pipelines.data.composition.source import CompositionConfig, CompositionSplits

__all__ = ["CompositionConfig", "CompositionSplits"]
