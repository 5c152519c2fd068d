"""Metrics of training steps: kept on the device, averaged and checked every so often."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.training.collective import Collective

MOST_STEPS = 200  # that are kept unread


@dataclass(frozen=True)
class NonFinite:
    """The first step at which `name` (a loss, a weight, a figure of the validation) is NaN or infinite.

    `metrics` are all of that step.
    """

    step: int
    name: str
    metrics: dict[str, float]


class StepMetrics:
    """Means over the steps since they were last asked for, and over the processes.

    `add` is free: no step waits for the device. `collect` reads what was added, in one transfer.
    """

    def __init__(self, collective: Collective):
        self.collective = collective
        self.failure: NonFinite | None = None
        self._unread: list[tuple[int, dict[str, Tensor]]] = []
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, step: int, metrics: dict[str, Tensor]) -> None:
        self._unread.append((step, metrics))
        if len(self._unread) == MOST_STEPS:
            self.collect()

    def collect(self) -> None:
        """Read the steps added so far; `failure` is set at the first one whose loss is not finite."""
        if not self._unread:
            return
        scalars = [value.float() for _, metrics in self._unread for value in metrics.values()]
        values = iter(self.collective.mean(torch.stack(scalars)).tolist())
        for step, metrics in self._unread:
            found = {name: next(values) for name in metrics}
            broken = [name for name, value in found.items() if is_loss(name) and not math.isfinite(value)]
            if broken and self.failure is None:
                self.failure = NonFinite(step, broken[0], found)
            for name, value in found.items():
                if not math.isfinite(value) and is_gradient_norm(name):
                    continue  # fp16: the gradient scaler has skipped this step
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] = self._counts.get(name, 0) + 1
        self._unread.clear()

    def means(self) -> dict[str, float]:
        """The means by name; the next ones begin anew."""
        self.collect()
        means = {name: self._sums[name] / self._counts[name] for name in sorted(self._sums)}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict:
        self.collect()
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict) -> None:
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


def is_gradient_norm(name: str) -> bool:
    """Whether a metric is the norm before clipping, of one phase or of one among several."""
    return name.rsplit("/", 1)[-1] == "gradient_norm"


def is_loss(name: str) -> bool:
    """Whether a metric is what a phase minimises: "loss", or "critic/loss" where there are several phases."""
    return name.rsplit("/", 1)[-1] == "loss"
