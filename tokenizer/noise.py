"""Random numbers that are the same on every device, in every memory layout and for every batch size."""

from collections.abc import Sequence

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
    if generator is None:
        return torch.randn(*shape, device=device)
    if isinstance(generator, Generator):
        return torch.randn(*shape, generator=generator, device=generator.device).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"found {len(generator)} generators, expected one for each of {shape[0]} rows")
    rows = [torch.randn(*shape[1:], generator=each, device=each.device) for each in generator]
    return torch.stack(rows).to(device) if rows else torch.empty(*shape, device=device)
