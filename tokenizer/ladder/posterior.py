"""The posterior of a hierarchical latent: every level given those above it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from tokenizer.ladder.prior import LadderPrior
from tokenizer.ladder.top_down import TopDown, from_noise, join, kl_between, log_density
from tokenizer.noise import Generators, standard_normal
from tokenizer.posteriors import DiagonalGaussian


@dataclass
class _Draw:
    """What drawing the joint latents z has computed. `version` is that of the tensor, which changes in place."""

    z: Float[Tensor, "n total 1 1"]
    version: int
    posteriors: list[DiagonalGaussian]
    states: list[Tensor | None]

    def holds(self, z: Float[Tensor, "..."]) -> bool:
        """Whether z is a view of all of these latents in their order."""
        whole = z if z._base is None else z._base
        base = self.z if self.z._base is None else self.z._base
        return whole is base and z.numel() == base.numel() and z.is_contiguous() and z._version == self.version


@dataclass(eq=False)
class LadderPosterior:
    """q(z | x) = q(z_top | x) Π q(z_l | levels above, x). Joint latents (b, k, total, 1, 1), see `TopDown`. float32.

    evidence: of every level, from the top. frozen: the weights of `network` get no gradient from the density.

    Densities of the draws given last need no second pass.
    """

    network: TopDown
    evidence: Sequence[Float[Tensor, "b _ _ _"]]
    frozen: bool = False
    _drawn: _Draw | None = field(default=None, init=False, repr=False)

    @property
    def top(self) -> DiagonalGaussian:
        """q(z_top | x)."""
        return self.network.posterior(0, None, self.evidence[0])

    @property
    def mean(self) -> Float[Tensor, "b total 1 1"]:
        """The mean of every level given the means of those above. The mean of z itself has no closed form."""
        return self._descend(self.evidence[0].new_zeros(len(self.evidence[0]), sum(self.network.sizes), 1, 1)).z

    def sample(self, draws: int = 1, generator: Generators = None) -> Float[Tensor, "b k total 1 1"]:
        """`draws` latents of each image, with their gradient. `generator`: as in `Posterior`."""
        shape = len(self.evidence[0]), draws, sum(self.network.sizes), 1, 1
        self._drawn = self._descend(standard_normal(shape, generator, self.evidence[0].device).flatten(0, 1))
        return self._drawn.z.view(shape)

    def log_prob(self, z: Float[Tensor, "b k total 1 1"]) -> Float[Tensor, "b k"]:
        """ln q(z | x), summed over all levels, nats."""
        levels = self.network.split(z.flatten(0, 1))
        densities = [log_density(*each) for each in zip(self._posteriors(z, levels), levels, strict=True)]
        return torch.stack(densities).sum(0).view(z.shape[:2])

    def kl(self, prior: Any, z: Float[Tensor, "b total 1 1"]) -> tuple[Float[Tensor, "b _ _ _"], ...] | None:
        """KL of every element in nats, a tensor for each level from the top; below it given the levels above in z.

        A top level whose prior has no closed form has a single element, ln q(z_top | x) - ln p(z_top), which has the KL
        as its mean. Below the top there is a closed form whatever that prior is.
        """
        if not isinstance(prior, LadderPrior):
            return None
        levels = self.network.split(z)
        posteriors, states = self._posteriors(z, levels), self._states(z, levels)
        top = posteriors[0].kl(prior.top, levels[0])
        if top is None:
            drawn = levels[0][:, None]
            top = ((posteriors[0].log_prob(drawn) - prior.top.log_prob(drawn))[:, :, None, None],)
        below = [
            kl_between(posterior, self.network.prior(level, state))
            for level, (posterior, state) in enumerate(zip(posteriors, states, strict=False))
            if state is not None
        ]
        return (*top, *below)

    def has_closed_form(self, prior: Any) -> bool:
        """Whether no element of `kl` is sampled."""
        return isinstance(prior, LadderPrior) and self.top.has_closed_form(prior.top)

    def detach(self) -> "LadderPosterior":
        return LadderPosterior(self.network, [each.detach() for each in self.evidence], frozen=True)

    def _descend(self, noise: Float[Tensor, "n total 1 1"]) -> _Draw:
        evidence = self._evidence(len(noise))
        noises = self.network.split(noise)
        posteriors = [self.network.posterior(0, None, evidence[0])]

        def conditional(level: int, state: Tensor) -> DiagonalGaussian:
            posteriors.append(self.network.posterior(level, state, evidence[level]))
            return posteriors[-1]

        levels, states = self.network.descend(from_noise(posteriors[0], noises[0]), conditional, noises)
        z = join(levels)
        return _Draw(z, z._version, posteriors, states)

    def _posteriors(self, z: Tensor, levels: list[Tensor]) -> list[DiagonalGaussian]:
        if self._drawn is not None and self._drawn.holds(z):
            return self._drawn.posteriors
        arguments = self._evidence(len(levels[0])), levels
        if not self.frozen:
            return self.network(*arguments)
        weights = {name: weight.detach() for name, weight in self.network.named_parameters()}
        return functional_call(self.network, weights, arguments)

    def _states(self, z: Tensor, levels: list[Tensor]) -> list[Tensor | None]:
        if self._drawn is not None and self._drawn.holds(z):
            return self._drawn.states
        return self.network.states_above(levels)

    def _evidence(self, rows: int) -> list[Tensor]:
        """The evidence for every draw; the draws of an image are adjacent."""
        b = len(self.evidence[0])
        return [each if rows == b else each.repeat_interleave(rows // b, 0) for each in self.evidence]
