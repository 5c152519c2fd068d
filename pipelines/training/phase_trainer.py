"""One phase at work: its optimizer, its weight average, its gradient scaler."""

from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.base import distributed
from pipelines.training.collective import Collective
from pipelines.training.config import TrainingConfig
from pipelines.training.optimizer import WeightAverage, build_optimizer, learning_rate
from pipelines.training.task import OptimizedPhase, TensorBatch


class PhaseTrainer:
    """Updates what a phase trains, and nothing else. `number` is the phase's turn in a step."""

    def __init__(
        self, optimized: OptimizedPhase, number: int, config: TrainingConfig, seed: int, accelerator: Accelerator
    ):
        self.phase, self.config = optimized.phase, optimized.optimizer
        self.number, self.steps, self.seed, self.accelerator = number, config.steps, seed, accelerator
        module, device = self.module, accelerator.device
        module.to(device)
        named = self.phase.trained_parameters()
        self.parameters = list(named.values())
        self.optimizer = build_optimizer(self.config, named)
        self.average = WeightAverage(self.phase.model, config.ema_decay) if config.ema_decay else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        if config.compile:
            module.compile()

    @property
    def module(self) -> nn.Module:
        return cast(nn.Module, self.phase)

    @property
    def published(self) -> nn.Module:
        """The model whose weights are validated and saved: the average if there is one."""
        return self.average.model if self.average else self.phase.model

    def compute_gradients(self, parts: list[TensorBatch], step: int) -> dict[str, Tensor]:
        """Gradients of the mean loss of a batch in parts; returns the metrics, averaged over the parts."""
        distributed.seed_step(self.seed, step, self.accelerator.process_index, self.number)
        self.optimizer.zero_grad(set_to_none=True)
        found = []
        for part in parts:
            with self.accelerator.autocast():
                loss, metrics = self.phase(part, step)
            self.scaler.scale(loss / len(parts) if len(parts) > 1 else loss).backward()
            found.append({**metrics, "loss": loss.detach()})
        return (
            found[0]
            if len(found) == 1
            else {name: torch.stack([m[name] for m in found]).float().mean(0) for name in found[0]}
        )

    def apply_gradients(self, step: int, collective: Collective) -> dict[str, Tensor]:
        """One optimizer step from the gradients of all processes; returns metrics of it."""
        metrics: dict[str, Tensor] = {}
        collective.average_gradients(self.parameters)
        if self.config.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            metrics["gradient_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step, self.steps)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.phase.after_step(step)
        if self.average:
            self.average.update(self.phase.model)
        return metrics

    def is_finite(self) -> bool:
        """Whether every trained weight is a finite number. Waits for the device."""
        largest = torch.stack([parameter.detach().abs().max() for parameter in self.parameters])
        return bool(largest.isfinite().all())

    def tensors(self) -> list[Tensor]:
        """Parameters and persistent buffers of the phase and of the average."""
        average = list(self.average.model.state_dict().values()) if self.average else []
        return [*self.module.state_dict().values(), *average]

    def state_dict(self) -> dict[str, Any]:
        """References to what a resumed run needs; nothing is copied."""
        return {
            "phase": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["phase"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
