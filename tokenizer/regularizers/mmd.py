"""The maximum mean discrepancy between the latents and their prior: WAE-MMD and InfoVAE.

Tolstikhin et al. 2018, arXiv 1711.01558 (a deterministic bottleneck); Zhao et al. 2017, arXiv 1706.02262 (a Gaussian
one, with a small weight of "kl").
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tokenizer.autoencoder import AutoencoderOutput
from tokenizer.options import Options
from tokenizer.regularizers.contract import Regularization, latent_rows


class MaximumMeanDiscrepancy(Options):
    """The term "mmd": the squared discrepancy between the latents of a batch and as many draws of the latent prior, by
    the unbiased estimator (arXiv 1711.01558, algorithm 2), which may be negative. Draws of the prior get no gradient.
    Of several draws of an image only the first counts: the estimator needs independent latents.

    kernel: "inverse_multiquadratic" C / (C + |x - y|²) or "rbf" exp(-|x - y|² / C), with C = 2 · elements of a latent ·
        scale: the squared distance that two draws of the standard normal have on average is the C of scale 1.
    scales: the kernel is the sum over them. The default is that of the authors' code.
    """

    kind: Literal["mmd"] = "mmd"
    kernel: Literal["inverse_multiquadratic", "rbf"] = "inverse_multiquadratic"
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), min_length=1, max_length=1000, examples=[(1.0,)]
    )

    def check_batch(self, images: int) -> None:
        """Raises ValueError when the estimator is not defined for so many images."""
        if images < 2:
            raise ValueError(f"found {images} image in a batch, expected at least 2")

    def check_latent(self, out: AutoencoderOutput) -> None:
        """Every continuous latent will do."""

    def regularize(self, out: AutoencoderOutput) -> Regularization:
        assert out.latent_prior is not None
        z = latent_rows(out.z[:, :1])
        with torch.no_grad():
            prior = out.latent_prior.sample(len(z)).flatten(1).to(z)
        return Regularization(self.discrepancy(z, prior))

    def discrepancy(self, z: Float[Tensor, "n elements"], prior: Float[Tensor, "n elements"]) -> Float[Tensor, ""]:
        """An unbiased estimate of MMD² from n rows of each distribution."""
        self.check_batch(n := len(z))
        within = [kernel.sum() - kernel.diagonal().sum() for kernel in (self._kernel(z, z), self._kernel(prior, prior))]
        return (within[0] + within[1]) / (n * (n - 1)) - 2 * self._kernel(z, prior).mean()

    def _kernel(self, x: Float[Tensor, "n elements"], y: Float[Tensor, "m elements"]) -> Float[Tensor, "n m"]:
        # Differences, not products of matrices: exact for close rows, and float32 under autocast.
        squared = (x[:, None] - y).square().sum(2)
        total = torch.zeros_like(squared)
        for scale in self.scales:
            c = 2 * x.shape[1] * scale
            total = total + (c / (c + squared) if self.kernel == "inverse_multiquadratic" else (-squared / c).exp())
        return total
