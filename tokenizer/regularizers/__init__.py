"""What shapes the latents of a whole batch, beside the KL of each image: terms of the batch, and discriminators.

A new one is a file and a line in a union. A regularizer has `kind`, which is also the name of its term, `check_batch`,
`check_latent` and `regularize`; a discriminator has `term`, the name of its term, `loss` and `others`.
"""

from typing import Annotated

from pydantic import Field

from tokenizer.regularizers.adversarial import AdversarialDiscriminator
from tokenizer.regularizers.contract import Regularization, latent_rows
from tokenizer.regularizers.discriminator import LATENTS, OTHERS, LatentDiscriminator, LatentDiscriminatorPhase
from tokenizer.regularizers.factor import FactorDiscriminator
from tokenizer.regularizers.mmd import MaximumMeanDiscrepancy
from tokenizer.regularizers.total_correlation import TotalCorrelation

RegularizerConfig = Annotated[TotalCorrelation | MaximumMeanDiscrepancy, Field(discriminator="kind")]
LatentDiscriminatorConfig = Annotated[FactorDiscriminator | AdversarialDiscriminator, Field(discriminator="kind")]

__all__ = [
    "LATENTS",
    "OTHERS",
    "LatentDiscriminator",
    "LatentDiscriminatorConfig",
    "LatentDiscriminatorPhase",
    "Regularization",
    "RegularizerConfig",
    "latent_rows",
]
