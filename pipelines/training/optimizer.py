"""Optimizer, learning-rate schedule and weight average: what one phase updates its weights with."""

import math
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.optim.swa_utils import AveragedModel

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(BaseModel):
    """AdamW with linear warm-up and cosine decay to `min_lr_ratio` of the peak learning rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    learning_rate: float = Field(3e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(100, ge=0, description="optimizer steps")
    min_lr_ratio: float = Field(0.05, ge=0, le=1)
    max_grad_norm: float | None = Field(1.0, gt=0)


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """AdamW; only matrices and convolution kernels decay, never biases, gains or embeddings of one dimension."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas, eps=config.eps
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of update `step` in [0, steps): a pure function, so that resuming needs no scheduler state."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    fraction = (step - config.warmup) / max(1, steps - config.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


class WeightAverage:
    """Exponential moving average of a module's parameters; its buffers (a codebook, say) are copied, not averaged.

    The decay warms up as (1 + t) / (10 + t), so that a short run is not an average over its initialisation.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.averaged = AveragedModel(module, multi_avg_fn=self._average, use_buffers=False)
        self.averaged.eval()

    @torch.no_grad()
    def _average(self, averaged: list[torch.Tensor], current: list[torch.Tensor], _: torch.Tensor | int) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def update(self, module: nn.Module) -> None:
        self.updates += 1
        self.averaged.update_parameters(module)

    @property
    def module(self) -> nn.Module:
        return self.averaged.module

    def state_dict(self) -> dict:
        return {"updates": self.updates, "averaged": self.averaged.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.averaged.load_state_dict(state["averaged"])
