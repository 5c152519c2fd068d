"""Random numbers that are the same on every device, in every memory layout and for every batch size."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

Generators = Generator | Sequence[Generator] | None


def standard_normal(
    shape: Sequence[int], generator: Generators = None, device: torch.device | str = "cpu"
) -> Float[Tensor, "..."]:
    """Independent N(0, 1) numbers, float32, on `device`.

    They are drawn on the generator's device, so that a CPU generator gives the same numbers everywhere. A sequence of
    generators has one for each entry of the first dimension: row i then depends on generator i only, whatever the
    batch size. Without a generator torch's default one for `device` is used.

    Raises:
        ValueError: the number of generators is not the number of rows.
    """
    return _draw(torch.randn, shape, generator, device)


def uniform(
    shape: Sequence[int], generator: Generators = None, device: torch.device | str = "cpu"
) -> Float[Tensor, "..."]:
    """Independent numbers, uniform between 0 and 1 and never one of them; otherwise as `standard_normal`."""
    return _draw(torch.rand, shape, generator, device).clamp(min=2**-25)  # torch draws multiples of 2^-24 below 1


def gumbel(
    shape: Sequence[int], generator: Generators = None, device: torch.device | str = "cpu"
) -> Float[Tensor, "..."]:
    """Standard Gumbel noise: the argmax of logits plus noise is a draw from their softmax. As `standard_normal`."""
    return -torch.log(-torch.log(uniform(shape, generator, device)))


def _draw(
    draw: Callable[..., Tensor], shape: Sequence[int], generator: Generators, device: torch.device | str
) -> Float[Tensor, "..."]:
    if generator is None:
        return draw(*shape, device=device)
    if isinstance(generator, Generator):
        return draw(*shape, generator=generator, device=generator.device).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"found {len(generator)} generators, expected one for each of {shape[0]} rows")
    rows = [draw(*shape[1:], generator=each, device=each.device) for each in generator]
    return torch.stack(rows).to(device) if rows else torch.empty(*shape, device=device)
