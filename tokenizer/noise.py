"""Random numbers that are the same on every device, in every memory layout and for every batch size."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
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


def choices(weight: Float[Tensor, " m"], n: int, generator: Generators = None) -> Int64[Tensor, " n"]:
    """n independent indices of `weight`, each as likely as its share; on its device. As `standard_normal`."""
    if generator is None or isinstance(generator, Generator):
        device = weight.device if generator is None else generator.device
        return torch.multinomial(weight.to(device), n, replacement=True, generator=generator).to(weight.device)
    _check_rows(n, generator)
    drawn = [torch.multinomial(weight.to(each.device), 1, generator=each).to(weight.device) for each in generator]
    return torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.int64, device=weight.device)


def _draw(
    draw: Callable[..., Tensor], shape: Sequence[int], generator: Generators, device: torch.device | str
) -> Float[Tensor, "..."]:
    if generator is None:
        return draw(*shape, device=device)
    if isinstance(generator, Generator):
        return draw(*shape, generator=generator, device=generator.device).to(device)
    _check_rows(shape[0], generator)
    rows = [draw(*shape[1:], generator=each, device=each.device) for each in generator]
    return torch.stack(rows).to(device) if rows else torch.empty(*shape, device=device)


def _check_rows(n: int, generators: Sequence[Generator]) -> None:
    if len(generators) != n:
        raise ValueError(f"found {len(generators)} generators, expected one for each of {n} rows")
