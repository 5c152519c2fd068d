"""THE training loop. All it knows of a model is a task (`task.py`): its phases take turns on the same batch.

Every random stream is a pure function of (seed, step, process), and batches are a pure function of (seed, step): to
resume, run the same command again.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from pipelines.base.errors import UserError
from pipelines.base.process_store import wait_for_all
from pipelines.base.progress import Meter, progress, say
from pipelines.base.signals import StopRequest, stop_requests
from pipelines.training.collective import Collective
from pipelines.training.config import TrainingConfig
from pipelines.training.metrics_log import MetricsLog, draw_curves, finite_or_none
from pipelines.training.phase_trainer import PhaseTrainer
from pipelines.training.run_folder import RunFolder
from pipelines.training.step_metrics import NonFinite, StepMetrics, is_loss
from pipelines.training.task import Models, TensorBatch, TrainingTask


class TrainingLoop:
    """Trains a task for `config.steps` steps in `folder`, from its newest state, or until `config.patience` validations
    have brought no gain. Only the first process writes.

    Raises:
        UserError: the batch cannot be shared out, or the loss stopped being finite: on every process.
    """

    def __init__(
        self, task: TrainingTask, config: TrainingConfig, seed: int, folder: RunFolder, accelerator: Accelerator
    ):
        self.task, self.config, self.folder, self.accelerator = task, config, folder, accelerator
        self.collective = Collective(accelerator)
        check_batch_size(config, self.collective.world)
        self.trainers = {
            name: PhaseTrainer(optimized, number, config, seed, accelerator)
            for number, (name, optimized) in enumerate(task.phases.items())
        }
        self.metrics = StepMetrics(self.collective)
        self.step, self.best, self.best_step = 0, math.inf, 0
        self.without_gain = 0  # validations since the best one
        self.figures: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Train to the end; returns the figures of the last validation."""
        self.resume()
        self.log = MetricsLog(self.folder.path / "metrics.jsonl", self.step) if self.collective.is_first else None
        visible, name = self.collective.is_first, self.folder.path.name
        with stop_requests(self.accelerator) as stop:
            with progress(self.config.steps, name, start=self.step, visible=visible) as meter:
                self.train_mode()
                for batch in self.batches(stop):
                    self.update(batch)
                    self.after_step(meter)
                    meter.advance()
            self.finish()
            self.stop_when_complete(stop)
        return self.figures

    # Steps

    def batches(self, stop: StopRequest) -> Iterator[TensorBatch]:
        """This process's share of each batch up to the last step, or up to a signal, which ends the run."""
        if self.is_over:
            return
        for batch in self.task.batches(self.step, self.collective.rank, self.collective.world):
            if stop.before(self.step):
                self.stop(stop)
            yield batch
            if self.is_over:
                return

    @property
    def stopped_early(self) -> bool:
        """Whether the last validations have brought no gain for as long as the recipe waits."""
        return self.config.patience is not None and self.without_gain >= self.config.patience

    @property
    def is_over(self) -> bool:
        return self.step == self.config.steps or self.stopped_early

    def update(self, batch: TensorBatch) -> None:
        """One step: every phase in turn updates its weights from the batch."""
        parts = cut_batch(batch, self.config.gradient_accumulation_steps, self.accelerator.device)
        found = {}
        for name, trainer in self.trainers.items():
            metrics = trainer.compute_gradients(parts, self.step)
            metrics |= trainer.apply_gradients(self.step, self.collective)
            prefix = f"{name}/" if len(self.trainers) > 1 else ""
            found |= {prefix + key: value for key, value in metrics.items()}
        self.step += 1
        self.metrics.add(self.step, found)

    def after_step(self, meter: Meter) -> None:
        """Log, validate and save where this step is due. Nothing of a model that has failed is written."""
        config, done = self.config, self.step == self.config.steps
        log, validate, save = (
            done or self.step % every == 0 for every in (config.log_every, config.validate_every, config.save_every)
        )
        if log or validate or save:
            self.refuse_non_finite()
        if log:
            self.record_means(meter)
        if validate:
            self.validate()
        if self.stopped_early and not log:
            self.record_means(meter)
        if save or self.stopped_early:
            self.save()

    def record_means(self, meter: Meter) -> None:
        means = self.metrics.means()
        meter.note(**{name: value for name, value in means.items() if is_loss(name)})
        self.record("train", means)

    def refuse_non_finite(self) -> None:
        """Raises UserError when a loss or a weight is not a finite number, after noting it in the folder."""
        self.metrics.collect()
        failure = self.metrics.failure
        if failure is None and not all(trainer.is_finite() for trainer in self.trainers.values()):
            failure = NonFinite(self.step, "a weight", {})
        if failure is not None:
            self.fail(failure)

    def fail(self, failure: NonFinite) -> NoReturn:
        """Ends the run on every process. What is noted in the folder lets other options continue it."""
        message = describe_failure(failure, self.folder, self.config)
        if self.collective.is_first:
            self.folder.record_failure(failure.step, message)
        wait_for_all(self.accelerator)  # the first process that raises ends the others
        raise UserError(message)

    def record(self, split: str, figures: dict[str, float]) -> None:
        self.accelerator.log({f"{split}/{name}": value for name, value in figures.items()}, step=self.step)
        if self.log:
            self.log.write(self.step, split, figures)

    # Validation

    @contextmanager
    def published(self) -> Iterator[Models]:
        """The models whose weights are validated and saved, in eval mode; training goes on afterwards."""
        models = {name: trainer.published.eval() for name, trainer in self.trainers.items()}
        with torch.no_grad():
            yield models
        self.train_mode()

    def train_mode(self) -> None:
        for trainer in self.trainers.values():
            trainer.module.train()

    def validate(self) -> None:
        """Means over all processes; figures, and the best weights so far, by the first."""
        task, path = self.task, self.folder.path
        with self.published() as models:
            self.figures = task.validate(models, self.collective)
            value = self.figures[task.monitor]
            if not math.isfinite(value):
                self.fail(NonFinite(self.step, f"{task.monitor} of the validation", self.figures))
            self.record("validation", self.figures)
            gain = value < self.best or task.best_is_latest
            if self.collective.is_first:
                task.save_figures(models, path / "figures", self.step)
                if gain:
                    task.publish(models, path / "best")
                draw_curves(path / "metrics.jsonl", path / "curves.png")
            self.without_gain += 1
            if gain:
                self.best, self.best_step, self.without_gain = value, self.step, 0

    # State

    def resume(self) -> None:
        """Continue from the newest state that the first process sees; without one, from its initial weights."""
        self.step = self.collective.from_first(self.folder.newest_step())
        if self.step:
            # On a CPU the optimizer would go on living in the mapped file.
            state = self.folder.load_state(self.step, mapped=self.accelerator.device.type != "cpu")
            with self.folder.refuse_damaged_state(self.step):
                self.load_state_dict(state)
        else:
            for trainer in self.trainers.values():
                self.collective.broadcast(trainer.tensors())

    def save(self) -> None:
        state = self.state_dict()
        if self.collective.is_first:
            self.folder.save_state(self.step, state, self.config.keep_states)

    def stop(self, stop: StopRequest) -> None:
        """Save the state between two steps and end as the signal asks."""
        self.refuse_non_finite()
        if self.step and self.collective.from_first(self.folder.newest_step()) != self.step:
            self.save()
        wait_for_all(self.accelerator)  # the first process that raises ends the others
        saved = f"the state of step {self.step} is saved" if self.step else "there is no state yet, no step was done"
        raise stop.interrupted(f"{self.folder.path}: {saved}")

    def finish(self) -> None:
        """Publish the last weights and mark the run as complete."""
        task, path = self.task, self.folder.path
        with self.published() as models:
            if not self.figures:  # killed after the last state, before the run was marked
                self.figures = task.validate(models, self.collective)
            if self.collective.is_first:
                task.publish(models, path / "last")
                self.folder.finish(self.summary())
        wait_for_all(self.accelerator)  # what comes next reads these files

    def summary(self) -> dict[str, Any]:
        """What `done.json` says."""
        best, figures = finite_or_none({self.task.monitor: self.best}), finite_or_none(self.figures)
        summary = {"steps": self.step, "best": best, "best_step": self.best_step, "validation": figures}
        if self.stopped_early:
            gain = f"no gain of {self.task.monitor} in {self.without_gain} validations since step {self.best_step}"
            say(f"{self.folder.path}: stopped at step {self.step:,} of {self.config.steps:,}, {gain}")
            summary["stopped_early"] = gain
        return summary

    def stop_when_complete(self, stop: StopRequest) -> None:
        """A signal during the last step or afterwards ends the command too: it may have more to do than this run."""
        numbers = [number for number in self.collective.gather(stop.signal_number) if number is not None]
        if numbers:
            stop.signal_number = numbers[0]
            raise stop.interrupted(f"{self.folder.path}: the run is complete")

    def state_dict(self) -> dict[str, Any]:
        phases = {name: trainer.state_dict() for name, trainer in self.trainers.items()}
        progress = {
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "without_gain": self.without_gain,
        }
        return {**progress, "phases": phases, "metrics": self.metrics.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
        self.best_step, self.without_gain = state.get("best_step", 0), state.get("without_gain", 0)
        self.metrics.load_state_dict(state["metrics"])
        for name, trainer in self.trainers.items():
            trainer.load_state_dict(state["phases"][name])


def check_batch_size(config: TrainingConfig, world: int) -> None:
    """Raises UserError when the processes and the accumulated parts cannot have equal shares of a batch."""
    if config.batch_size % (world * config.gradient_accumulation_steps):
        raise UserError(
            f"training.batch_size: found {config.batch_size}, expected a multiple of processes x "
            f"gradient_accumulation_steps = {world} x {config.gradient_accumulation_steps}"
        )


def cut_batch(batch: TensorBatch, count: int, device: torch.device) -> list[TensorBatch]:
    """The batch on the device in `count` equal parts."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    if count == 1:
        return [moved]
    pieces = {name: value.chunk(count) for name, value in moved.items()}
    return [{name: values[index] for name, values in pieces.items()} for index in range(count)]


def describe_failure(failure: NonFinite, folder: RunFolder, config: TrainingConfig) -> str:
    """What stopped being finite, and what to do about it in the same folder."""
    terms = [f"{name} {value:.4g}" for name, value in failure.metrics.items() if name != failure.name]
    details = f" ({', '.join(terms)})" if terms else ""
    start = folder.newest_step()
    where = f"continues from the state of step {start}" if start else "starts over"
    lower = "a lower training.optimizer.learning_rate or training.optimizer.max_grad_norm"
    other = " or training.precision=fp32" if config.precision == "fp16" else ""
    return (
        f"{folder.path}: {failure.name} is not a finite number at step {failure.step}{details}. Nothing has been saved "
        f"since. The same command with {lower}{other} {where}"
    )
