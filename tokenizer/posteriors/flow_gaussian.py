"""A Gaussian that a normalizing flow transforms (Rezende & Mohamed 2015, arXiv 1505.05770)."""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tokenizer.flows import Flow
from tokenizer.noise import Generators
from tokenizer.posteriors.diagonal_gaussian import DiagonalGaussian


@dataclass
class FlowGaussian:
    """z = flow(e, context) of draws e from `base`. float32.

    The density of the draws given last is known from drawing them. That of another z needs the inverse of the flow.
    """

    base: DiagonalGaussian
    flow: Flow
    context: Float[Tensor, "b c"]
    _drawn: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    @property
    def mean(self) -> Float[Tensor, "b d h w"]:
        """Where the flow takes the mean of `base`. The mean of z itself has no closed form."""
        z, _ = self.flow(self.base.mean.flatten(1), self.context)
        return z.view(self.base.mean.shape)

    def sample(self, draws: int = 1, generator: Generators = None) -> Float[Tensor, "b k d h w"]:
        """`draws` latents of each image, with their gradient. `generator`: as in `Posterior`."""
        start = self.base.sample(draws, generator)
        flat, log_determinant = self.flow(start.flatten(2), self.context[:, None])
        z = flat.view(start.shape)
        self._drawn = z, self.base.log_prob(start) - log_determinant
        return z

    def log_prob(self, z: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k"]:
        """ln q(z | x), nats."""
        if self._drawn is not None and z is self._drawn[0]:
            return self._drawn[1]
        flat, log_determinant = self.flow(z.flatten(2), self.context[:, None], inverse=True)
        return self.base.log_prob(flat.view(z.shape)) + log_determinant

    def kl(self, prior: Any, z: Float[Tensor, "b d h w"] | None = None) -> None:
        """None: it has no closed form."""

    def has_closed_form(self, prior: Any) -> bool:
        return False

    def detach(self) -> None:
        """None: a density with detached weights would need the inverse of every draw."""
