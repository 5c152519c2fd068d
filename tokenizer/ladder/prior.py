"""p(z) of a hierarchical latent: a configured prior for the top level, a learned one for each level below."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.ladder.top_down import TopDown, join, log_density
from tokenizer.latents import LatentDistribution
from tokenizer.noise import Generators, standard_normal


@dataclass
class LadderPrior:
    """p(z) = p(z_top) Π p(z_l | levels above). Joint latents (b, k, total, 1, 1), see `TopDown`. float32."""

    top: LatentDistribution
    network: TopDown

    def log_prob(self, z: Float[Tensor, "b k total 1 1"]) -> Float[Tensor, "b k"]:
        """ln p(z), summed over all levels, nats."""
        levels = self.network.split(z.flatten(0, 1))
        densities = [
            log_density(self.network.prior(level, state), latent)
            for level, (state, latent) in enumerate(zip(self.network.states_above(levels), levels, strict=False))
            if state is not None
        ]
        top = self.top.log_prob(levels[0].unflatten(0, z.shape[:2]))
        return top + torch.stack(densities).sum(0).view(z.shape[:2])

    def sample(self, n: int, generator: Generators = None, temperature: float = 1.0) -> Float[Tensor, "n total 1 1"]:
        """n draws, float32, see `LatentDistribution`. The temperature is that of every level."""
        device = next(self.network.parameters()).device
        top = self.top.sample(n, generator, temperature).to(device)
        below = sum(self.network.sizes[1:])
        noise = temperature * standard_normal((n, below, 1, 1), generator).to(device)
        noises = self.network.split(torch.cat([noise.new_zeros(n, self.network.sizes[0], 1, 1), noise], 1))
        return join(self.network.descend(top, self.network.prior, noises)[0])
