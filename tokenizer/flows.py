"""Normalizing flows over flattened latents. Their networks are zuko's, which is imported where one is built."""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

FlowKind = Literal["coupling", "masked_autoregressive", "neural_spline"]
Widths = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1, max_length=1000)]


MAX_WEIGHTS = 2**26


class Flow(nn.Module):
    """A learned bijection of vectors of `size` numbers, with its log-determinant. Float32, whatever type the weights
    have.

    "coupling": affine, on half of the numbers at a time (RealNVP, arXiv 1605.08803); both directions cost one pass.
    "masked_autoregressive": affine, each number given those before it (MAF, arXiv 1705.07057). "neural_spline": the
    same with rational-quadratic splines between -5 and 5 (arXiv 1906.04032). Both cost `size` passes to invert.

    transforms: how many follow one another; the order of the numbers is reversed, or their halves swapped, in between.
    widths: of the hidden layers of each. context: how many numbers the bijection depends on.

    Raises ValueError at construction for networks of more than `MAX_WEIGHTS` weights.
    """

    def __init__(self, kind: FlowKind, size: int, transforms: int, widths: tuple[int, ...], context: int = 0):
        super().__init__()
        import zuko

        flows = {
            "coupling": zuko.flows.RealNVP,
            "masked_autoregressive": zuko.flows.MAF,
            "neural_spline": zuko.flows.NSF,
        }
        _check_size(kind, transforms, size, widths, context)
        target = torch.get_default_device()
        # Masks are computed from their values, which tensors without storage do not have.
        with torch.device("cpu" if target.type == "meta" else target):
            flow = flows[kind](size, context, transforms=transforms, hidden_features=widths)
        # Zuko's base distribution is left out: its buffers would be stored with the weights.
        self.bijection = flow.transform.to(target)

    def forward(
        self, x: Float[Tensor, "*b n"], context: Float[Tensor, "*#b c"] | None = None, inverse: bool = False
    ) -> tuple[Float[Tensor, "*b n"], Float[Tensor, "*b"]]:
        """Where x is mapped to (or comes from), and ln |det| of that map's Jacobian."""
        weights = dict(self.named_parameters())
        with torch.autocast(x.device.type, enabled=False):
            if any(weight.dtype != torch.float32 for weight in weights.values()):
                upcast = {name: weight.float() for name, weight in weights.items()}
                return torch.func.functional_call(self, upcast, (x, context, inverse))
            bijection = self.bijection(context)
            return (bijection.inv if inverse else bijection).call_and_ladj(x)


def _check_size(kind: FlowKind, transforms: int, size: int, widths: tuple[int, ...], context: int) -> None:
    outputs = size * (23 if kind == "neural_spline" else 2)  # numbers that describe the map of an element
    weights = transforms * sum(before * after for before, after in pairwise((size + context, *widths, outputs)))
    if weights > MAX_WEIGHTS:
        raise ValueError(f"a flow of {weights:,} weights, expected at most {MAX_WEIGHTS:,}: fewer transforms or widths")
