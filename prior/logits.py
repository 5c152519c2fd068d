"""From logits to the distribution a code is drawn from: pure functions, one order, in float32.

guidance -> temperature -> top-k -> top-p (inside the top-k) -> min-p.
"""

import math

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor

FLOAT32 = torch.finfo(torch.float32)


class SamplingOptions(BaseModel):
    """How codes are chosen. `None` switches a filter off; without do_sample the most likely code is taken.

    Raises pydantic's ValidationError for numbers out of range or that no float32 can hold, and for options that
    contradict each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(default=1.0, gt=0)
    top_k: PositiveInt | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    do_sample: bool = True
    guidance_scale: float = Field(default=1.0, ge=0, le=1e6)
    """s in uncond + s (cond - uncond): 1 is off, and costs nothing."""

    @model_validator(mode="after")
    def _check_float32(self) -> "SamplingOptions":
        for name in ("temperature", "top_p", "min_p", "guidance_scale"):
            value = getattr(self, name)
            if value and not FLOAT32.tiny <= value <= FLOAT32.max:
                limits = f"{FLOAT32.tiny:.2g} to {FLOAT32.max:.2g}"
                raise ValueError(f"{name}: found {value}, which float32 cannot hold; expected {limits}")
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> "SamplingOptions":
        if not self.do_sample:
            for name, off in (("temperature", 1.0), ("top_k", None), ("top_p", None), ("min_p", None)):
                if (value := getattr(self, name)) != off:
                    raise ValueError(f"{name} needs do_sample=True, got {name}={value} with do_sample=False")
        return self

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1


def guide(conditional: Float[Tensor, "b k"], unconditional: Float[Tensor, "b k"], scale: float) -> Float[Tensor, "b k"]:
    """uncond + scale * (cond - uncond)  (arXiv 2207.12598 eq. 6 with scale = 1 + w)."""
    return torch.lerp(unconditional, conditional, scale)


def divide_by_temperature(logits: Float[Tensor, "b k"], temperature: float) -> Float[Tensor, "b k"]:
    """The largest logit becomes 0 first, so that no temperature makes it infinite."""
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def filter_top_k(logits: Float[Tensor, "b k"], top_k: int) -> Float[Tensor, "b k"]:
    """Keep the top_k largest, of equal ones the smaller codes."""
    if top_k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(top_k, dim=-1).values[:, -1:]
    larger, equal = logits > smallest, logits == smallest
    room = top_k - larger.sum(dim=-1, keepdim=True)
    kept = larger | (equal & (equal.cumsum(dim=-1) <= room))
    return logits.masked_fill(~kept, -math.inf)


def filter_top_p(logits: Float[Tensor, "b k"], top_p: float) -> Float[Tensor, "b k"]:
    """Keep the fewest most likely codes whose mass reaches top_p, with the one that crosses it (arXiv 1904.09751)."""
    if top_p >= 1:
        return logits
    ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    before[:, 0] = 0  # rounding must never drop the most likely code
    return logits.masked_fill((before >= top_p).scatter(-1, order, before >= top_p), -math.inf)


def filter_min_p(logits: Float[Tensor, "b k"], min_p: float) -> Float[Tensor, "b k"]:
    """Keep the codes at least min_p times as likely as the most likely one (arXiv 2407.01082)."""
    if min_p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(min_p), -math.inf)


def process_logits(
    conditional: Float[Tensor, "b k"],
    options: SamplingOptions,
    unconditional: Float[Tensor, "b k"] | None = None,
) -> Float[Tensor, "b k"]:
    """Guidance, temperature and filters, in that order; -inf where a code may not be drawn. No input is changed.

    The result is float32 whatever the dtype of the logits, correct up to a constant of each row. Raises ValueError when
    guidance is asked for without unconditional logits.
    """
    logits = conditional.float()
    if options.guided:
        if unconditional is None:
            raise ValueError(f"guidance_scale={options.guidance_scale} needs the unconditional logits")
        logits = guide(logits, unconditional.float(), options.guidance_scale)
    if options.temperature != 1:
        logits = divide_by_temperature(logits, options.temperature)
    if options.top_k is not None:
        logits = filter_top_k(logits, options.top_k)
    if options.top_p is not None:
        logits = filter_top_p(logits, options.top_p)
    if options.min_p is not None:
        logits = filter_min_p(logits, options.min_p)
    return logits
