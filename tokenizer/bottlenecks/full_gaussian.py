"""The Gaussian posterior with a full covariance."""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.bottlenecks.contract import BottleneckOutput, OneLevel
from tokenizer.bottlenecks.gaussian import GaussianOptions
from tokenizer.posteriors import FullGaussian


class FullGaussianConfig(GaussianOptions):
    """The elements of the latent are correlated, across channels and positions.

    A log-variance is that of an element given those before it.
    """

    max_elements: ClassVar[int] = 256  # 32,640 features for the covariance
    kind: Literal["full_gaussian"] = "full_gaussian"

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Raises ValueError when the latent has too many elements."""
        elements = self.dim * math.prod(grid)
        if elements > self.max_elements:
            raise ValueError(
                f"bottleneck: the latent of a {self.kind} posterior has {elements} elements ({self.dim} channels, "
                f"{grid[0]} x {grid[1]} positions), expected at most {self.max_elements}: its covariance has the square"
            )


class FullGaussianBottleneck(OneLevel, nn.Module):
    """h holds means, log-variances, and the part of the Cholesky factor below the diagonal, in units of deviations.

    The factor is diag(deviation) (I + lower / √n) for a latent of n elements: whatever n is, features that are small
    mean correlations that are.
    """

    lower: Tensor

    def __init__(self, config: FullGaussianConfig, grid: tuple[int, int]):
        super().__init__()
        config.check_grid(grid)
        self.config = config
        positions = math.prod(grid)
        self.size = config.dim * positions
        self.register_buffer("lower", torch.tril_indices(self.size, self.size, -1), persistent=False)
        self.dim = config.dim
        self.in_channels = 2 * config.dim + math.ceil(self.lower.shape[1] / positions)

    def forward(self, h: Float[Tensor, "b c h w"], step: int = 0) -> BottleneckOutput:
        mean, log_variance, rest = h.float().split([self.dim, self.dim, h.shape[1] - 2 * self.dim], 1)
        deviation = (0.5 * log_variance.clamp(*self.config.log_variance_range)).exp().flatten(1)
        rows, columns = self.lower
        unit = torch.eye(self.size, device=h.device).expand(len(h), -1, -1).clone()
        unit[:, rows, columns] = rest.flatten(1)[:, : len(rows)] * self.size**-0.5
        return BottleneckOutput(mean, posterior=FullGaussian(mean, deviation[:, :, None] * unit))
