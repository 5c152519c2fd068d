"""The least time that a step of the decoder can take on this machine, and what times it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from prior import CachedDecoder, TokenPrior
from prior.conditioning import condition_tokens

KERNEL = 1.3e-6  # seconds to start one inside a CUDA graph


def fastest(runs: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Seconds of the fastest call of each, called in alternation."""
    best = [float("inf")] * len(runs)
    for _ in range(repeats):
        for index, run in enumerate(runs):
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Machine:
    """Bytes per second of a big copy, and floating point operations per second of a big product."""

    bandwidth: float
    speed: float

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> "Machine":
        return cls(copy_rate(device), product_rate(device, dtype))

    def floor(self, prior: TokenPrior, decoder: CachedDecoder, batch: int) -> float:
        """The least seconds of an average step, which reads weights and the keys and values that the masks show, or
        multiplies, where that takes longer; and on a GPU starts kernels.
        """
        weights = sum(w.numel() for block in decoder.blocks for w in (block.qkv, block.out, block.up, block.down))
        weights += sum(head.numel() for head in decoder.code_heads)
        config = prior.config.transformer
        cached = batch * 2 * config.heads * config.head_dim * keys_per_step(decoder)
        reading = (weights + cached) * decoder.embedding.element_size() / self.bandwidth
        multiplying = 2 * (weights * batch + cached) / self.speed
        if prior.device.type == "cuda":
            return max(reading, multiplying) + KERNEL * kernels_per_step(prior, decoder, batch)
        return max(reading, multiplying)


def keys_per_step(decoder: CachedDecoder) -> float:
    """How many keys an average step attends to, summed over the layers."""
    steps = slice(decoder.vocabulary.condition.length, None)
    shown = {
        keys: (decoder.causal if keys is None else keys.mask)[steps].sum(1).double().mean() for keys in decoder.keys
    }
    return float(sum(shown[block.keys] for block in decoder.blocks))


def copy_rate(device: torch.device) -> float:
    """Bytes read and written per second by a copy too big for any cache."""
    source = torch.ones((1024 if device.type == "cuda" else 64) * 2**20, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest([lambda: target.copy_(source)], 5, device)[0]


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of a big matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / fastest([lambda: a @ b], 5, device)[0]


def kernels_per_step(prior: TokenPrior, decoder: CachedDecoder, batch: int) -> int:
    """Kernels of one step of the decoder, as the profiler counts them."""
    codes = torch.zeros(batch, dtype=torch.long, device=prior.device)
    decoder.prefill(condition_tokens(prior.vocabulary, None, batch, prior.device), codes[:, None][:, :0])
    decoder.step(codes)
    synchronize(prior.device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        decoder.step(codes)
        synchronize(prior.device)
    return sum(event.device_type.name == "CUDA" for event in profile.events() or ())
