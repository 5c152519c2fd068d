"""What the distributions over latents of the continuous family offer: q(z | x), and p(z)."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from tokenizer.noise import Generators


@runtime_checkable
class Posterior(Protocol):
    """A distribution over latents for each image of a batch. Draws have the shape (b, k, d, h, w). float32."""

    @property
    def mean(self) -> Float[Tensor, "b d h w"]: ...

    def sample(self, draws: int = 1, generator: Generators = None) -> Float[Tensor, "b k d h w"]:
        """`draws` latents of each image, with their gradient. `generator`: one for the batch, one for each image, or
        torch's default (see `standard_normal`).
        """
        ...

    def log_prob(self, z: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k"]:
        """ln q(z | x), summed over the elements of each latent, nats."""
        ...

    def kl(self, prior: Any, z: Float[Tensor, "b d h w"]) -> tuple[Float[Tensor, "b _ _ _"], ...] | None:
        """KL(q(z | x) || p(z)) in nats: one tensor for each level of the latent, whose elements add up to it. None
        where it has no closed form.

        A level whose elements are not independent has a single element. Where a level is conditioned on those above
        it, its KL is that for `z`.
        """
        ...

    def has_closed_form(self, prior: Any) -> bool:
        """Whether `kl` gives a tensor for each level, none of them sampled."""
        ...

    def detach(self) -> "Posterior | None":
        """The same distribution, whose density passes no gradient to the encoder; None where that is not offered."""
        ...


@runtime_checkable
class FactorizedPosterior(Posterior, Protocol):
    """A posterior whose elements are independent, given the image."""

    def pairwise_log_prob(self, z: Float[Tensor, "n d h w"]) -> Float[Tensor, "n b elements"]:
        """ln q(z | x) of every element of every latent for every image of the batch, nats."""
        ...


PosteriorOf = Callable[[Float[Tensor, "n c h w"]], Posterior]
"""The encoder: from images in [0, 1] to q(z | x)."""


@runtime_checkable
class LatentDistribution(Protocol):
    """p(z) with the weights of this moment; or p(z | condition), see `LatentPrior`."""

    def log_prob(self, z: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k"]:
        """ln p(z), summed over the elements of each latent, nats. float32."""
        ...

    def sample(self, n: int, generator: Generators = None, temperature: float = 1.0) -> Float[Tensor, "n d h w"]:
        """n draws, float32. `generator`: one for all or one for each draw; the CPU's default without one.

        `temperature`, above 0, multiplies the standard deviation of the Gaussian noise that draws are made of (Kingma &
        Dhariwal 2018, arXiv 1807.03039, section 6). Below 1 draws are more typical, and less diverse.
        """
        ...


@runtime_checkable
class LatentPrior(Protocol):
    """A module that learns p(z), for latents of one shape (d, h, w)."""

    def distribution(
        self, posterior_of: PosteriorOf, condition: Float[Tensor, "#b c"] | None = None
    ) -> LatentDistribution:
        """The distribution that the weights describe. Asked once for each forward pass, so that what all draws share is
        computed once. `posterior_of` is for a prior that is made of the encoder (VampPrior).

        A prior whose options say `conditional` gives p(z | condition), one distribution for each of b embedded labels:
        of images (b, k, d, h, w) in `log_prob`, and of b draws in `sample`. One label stands for all. Others take no
        notice of `condition`.
        """
        ...
