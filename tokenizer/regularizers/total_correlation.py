"""The total correlation of the latents, KL(q(z) || Π q(z_j)), estimated from the posteriors of a batch: beta-TCVAE.

Chen et al. 2018, arXiv 1802.04942. q(z) is the mean of the posteriors of all images, the aggregate posterior. In

    E[KL(q(z | x) || p(z))] = I(x; z) + KL(q(z) || Π q(z_j)) + Σ KL(q(z_j) || p(z_j))      (equation 2)

the weights {nll: 1, kl: 1, total_correlation: beta - 1} weigh the middle part, the total correlation, by beta.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from tokenizer.autoencoder import AutoencoderOutput
from tokenizer.latents import FactorizedPosterior
from tokenizer.options import Options
from tokenizer.regularizers.contract import Regularization


class TotalCorrelation(Options):
    """The term "total_correlation", and the metrics "mutual_information" and "dimension_wise_kl": the three parts of
    the KL, estimated at the latents that were drawn. They add up to the mean of ln q(z | x) - ln p(z).

    estimator: of ln q(z) from the M images of a batch. "weighted" has 1 / (N M) Σ q(z | x_m), which is too low
        (section 3.1). "stratified" has weights under which the mean over batches is q(z) (appendix C.2). The logarithm
        of either is too low on average. (The authors' code gives two columns of the matrix the weights that the paper
        has for the image itself and for one other; here each row has them, as in the paper.)
    dataset_size: N, the number of training images. Without it N is 1: the figures are then those of the mean of the
        batch's posteriors in place of the aggregate one, and the mutual information is at most ln M. The gradient of
        "weighted" does not depend on N.
    """

    kind: Literal["total_correlation"] = "total_correlation"
    estimator: Literal["weighted", "stratified"] = "weighted"
    dataset_size: int | None = Field(default=None, ge=1, le=2**62, examples=[1000])

    @model_validator(mode="after")
    def _strata_have_a_size(self):
        if self.estimator == "stratified" and self.dataset_size is None:
            raise ValueError("estimator: stratified needs dataset_size, the number of training images")
        return self

    def check_batch(self, images: int) -> None:
        """Raises ValueError when the estimator is not defined for so many images."""
        if self.dataset_size is not None and self.dataset_size < images:
            raise ValueError(
                f"dataset_size: found {self.dataset_size}, expected at least the {images} images of a batch"
            )
        if images < 2:
            raise ValueError(f"found {images} image in a batch, expected at least 2")

    def check_latent(self, out: AutoencoderOutput) -> None:
        """Raises ValueError when the latent has no posterior of independent elements."""
        if not isinstance(out.bottleneck.posterior, FactorizedPosterior):
            raise ValueError("expected a Gaussian bottleneck: a posterior whose elements are independent")

    def regularize(self, out: AutoencoderOutput) -> Regularization:
        posterior, prior = out.bottleneck.posterior, out.latent_prior
        assert isinstance(posterior, FactorizedPosterior) and prior is not None
        elements = posterior.pairwise_log_prob(out.z.flatten(0, 1))
        weights = self._log_weights(*out.z.shape[:2]).to(elements.device)
        joint = torch.logsumexp(elements.sum(2) + weights, 1).mean()
        marginals = torch.logsumexp(elements + weights[..., None], 1).sum(1).mean()
        with torch.no_grad():
            conditional, expected = posterior.log_prob(out.z).mean(), prior.log_prob(out.z).mean()
        metrics = {
            "mutual_information": conditional - joint.detach(),
            "dimension_wise_kl": marginals.detach() - expected,
        }
        return Regularization(joint - marginals, metrics)

    def _log_weights(self, images: int, draws: int) -> Float[Tensor, "n b"]:
        """ln of the weight of each image's posterior in q(z), for each latent."""
        self.check_batch(images)
        size = self.dataset_size or 1
        if self.estimator == "weighted":
            return torch.full((images * draws, images), -math.log(size * images))
        others = images - 1
        weights = torch.full((images, images), 1 / others)
        rows = torch.arange(images)
        weights[rows, rows] = 1 / size
        weights[rows, (rows + 1) % images] = (size - others) / (size * others)
        return weights.log().repeat_interleave(draws, 0)
