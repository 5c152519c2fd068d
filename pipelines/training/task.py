"""What the training loop knows of a model: its phases, and a task that feeds, validates and publishes it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from pipelines.data.loader import TensorBatch
from pipelines.training.collective import Collective
from pipelines.training.optimizer import OptimizerConfig

__all__ = ["Models", "OptimizedPhase", "Phase", "TensorBatch", "TrainingTask"]

Models = Mapping[str, nn.Module]


class Phase(Protocol):
    """A module that computes a loss and names what it trains. The loop also moves, compiles and saves it as a module.

    `model` is what is averaged and published. A phase may hold modules that it does not train, such as the model of
    another phase.
    """

    @property
    def model(self) -> nn.Module: ...

    def __call__(self, batch: TensorBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and metrics as detached scalars.

        A phase may add entries to `batch` for the phases after it; it must detach them.
        """
        ...

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What the optimizer of this phase updates, by name, always in the same order."""
        ...

    def after_step(self, step: int) -> None:
        """Called once after each optimizer step, on every process; all accumulated parts have been seen."""
        ...


@dataclass(frozen=True)
class OptimizedPhase:
    """A phase and the optimizer that it gets."""

    phase: Phase
    optimizer: OptimizerConfig


class TrainingTask(Protocol):
    """One model in training. The models that are handed back have the weights to be published and are in eval mode."""

    monitor: str
    """The figure of `validate`, lower is better, by which the best weights are chosen. It must stay finite."""

    best_is_latest: bool
    """Whether the best weights are those of the latest validation, whatever `monitor` says: it is not the objective."""

    @property
    def phases(self) -> Mapping[str, OptimizedPhase]:
        """In the order in which they take turns on each batch."""
        ...

    def batches(self, start_step: int, rank: int, world: int) -> Iterable[TensorBatch]:
        """This process's share of every batch from `start_step` on: a pure function of (step, rank, world)."""
        ...

    def validate(self, models: Models, collective: Collective) -> dict[str, float]:
        """Figures of the held-out split, the same on every process and for any number of processes."""
        ...

    def publish(self, models: Models, folder: Path) -> None:
        """Write a model folder. Called on the first process."""
        ...

    def save_figures(self, models: Models, folder: Path, step: int) -> None:
        """Write PNGs for people. Called on the first process."""
        ...
