"""What every likelihood takes, offers and returns."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.noise import Generators


@runtime_checkable
class Likelihood(Protocol):
    """p(x | z) for images x in [0, 1], given the p maps that the decoder computes from z. A module.

    It owns the pixel range: the encoder sees `inmap(x)`, and what the maps mean is known here alone. All results are
    float32, whatever the precision of the maps and of autocast. Leading dimensions are free: one, the batch, or two,
    batch and draws.

    out_channels: p, the number of maps that the decoder must give.
    bins: `nll` is minus the log of a probability mass over so many values k / (bins - 1) of a pixel. It is that of the
        image if its pixels have such values (two: black and white), as an 8-bit image has with 256. None: of a density
        over continuous pixels, per unit of the range [0, 1]; it may be negative.
    is_mass: `bins` is a number. Figures in nats compare between likelihoods of the same `bins` only.
    """

    out_channels: int

    @property
    def bins(self) -> int | None: ...

    @property
    def is_mass(self) -> bool: ...

    def inmap(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
        """Images in [0, 1] -> what the encoder sees. The function's name is part of a tokenizer's fingerprint."""
        ...

    def nll(self, params: Float[Tensor, "*n p h w"], x: Float[Tensor, "*#n c h w"]) -> Float[Tensor, "*n"]:
        """-ln p(x | z) in nats per image: a sum over channels and pixels, never a mean.

        Images of shape (b, 1, c, h, w) are compared with all k draws of maps of shape (b, k, p, h, w), without a copy.
        """
        ...

    def mean(self, params: Float[Tensor, "*n p h w"]) -> Float[Tensor, "*n c h w"]:
        """The expected image, in [0, 1] and differentiable: the one to show."""
        ...

    def sample(self, params: Float[Tensor, "*n p h w"], generator: Generators = None) -> Float[Tensor, "*n c h w"]:
        """An image with pixel noise, clipped to [0, 1]. `generator`: one, or one for each entry of the first axis."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...


def signed(x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """[0, 1] -> [-1, 1]."""
    return 2 * x - 1


def sum_per_image(pixels: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n"]:
    return pixels.sum((-3, -2, -1))
