"""Optimizer, learning-rate schedule and weight average: what a phase updates its weights with."""

import copy
import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(BaseModel):
    """AdamW with linear warm-up and cosine decay to `min_lr_ratio` of the peak learning rate, reached at the last step
    or, if it is given, at step `decay_steps`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    learning_rate: float = Field(default=3e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=100, ge=0, description="optimizer steps")
    min_lr_ratio: float = Field(default=0.05, ge=0, le=1)
    decay_steps: int | None = Field(default=None, gt=0, description="step from which the rate no longer falls")
    max_grad_norm: float | None = Field(default=1.0, gt=0)


def build_optimizer(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW on named parameters. Only matrices and convolution kernels decay, never biases, gains or embeddings of one
    dimension, nor what a latent prior learns beside the weights of a network: images, means and log-variances.
    """
    decays = {name: _decays(name, parameter) for name, parameter in parameters.items()}
    groups = [
        {"params": [p for name, p in parameters.items() if decays[name]], "weight_decay": config.weight_decay},
        {"params": [p for name, p in parameters.items() if not decays[name]], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        # One pass over the weights; with a gradient scaler it also saves waiting for the device in every step.
        fused=all(p.device.type in ("cpu", "cuda") for p in parameters.values()),
    )


def _decays(name: str, parameter: nn.Parameter) -> bool:
    of_a_network = not name.startswith("latent_prior.") or name.endswith(".weight")
    return parameter.ndim >= 2 and of_a_network


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of update `step` in [0, steps): a pure function, so that resuming needs no scheduler state."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    fraction = (step - config.warmup) / max(1, (config.decay_steps or steps) - config.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


class WeightAverage:
    """Exponential moving average of a model's parameters; its buffers (a codebook, say) are copied, not averaged. Those
    that are not saved are left alone: they are constants, or what a codebook collects during a step.

    The decay warms up as (1 + t) / (10 + t), so that a short run is not an average over its initialisation.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.saved = set(model.state_dict())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Let the average follow `model`. The weights of the first update are taken as they are."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates > 1 else 0.0
        current = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(list(self.model.parameters()), current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        kept = dict(self.model.named_buffers())
        for name, buffer in model.named_buffers():
            if name in self.saved:
                kept[name].copy_(buffer)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"], strict=True)
