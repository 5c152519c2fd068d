"""p(x | z), behind the contract of `Likelihood`. A new one is a file, one line in the union, and a `case` below."""

from typing import Annotated

from pydantic import Field

from tokenizer.likelihoods.bernoulli import Bernoulli, BernoulliConfig
from tokenizer.likelihoods.categorical import Categorical, CategoricalConfig
from tokenizer.likelihoods.contract import Likelihood
from tokenizer.likelihoods.discretized_logistic import DiscretizedLogistic, DiscretizedLogisticConfig
from tokenizer.likelihoods.laplace import Laplace, LaplaceConfig
from tokenizer.likelihoods.logit_laplace import LogitLaplace, LogitLaplaceConfig
from tokenizer.likelihoods.normal import Normal, NormalConfig

LikelihoodConfig = Annotated[
    NormalConfig
    | LaplaceConfig
    | LogitLaplaceConfig
    | BernoulliConfig
    | CategoricalConfig
    | DiscretizedLogisticConfig,
    Field(discriminator="kind"),
]  # fmt: skip

__all__ = ["Likelihood", "LikelihoodConfig", "build_likelihood"]


def build_likelihood(config: LikelihoodConfig, channels: int) -> Likelihood:
    """The module that `config` describes, for images with `channels` channels."""
    match config:
        case NormalConfig():
            return Normal(config, channels)
        case LaplaceConfig():
            return Laplace(config, channels)
        case LogitLaplaceConfig():
            return LogitLaplace(config, channels)
        case BernoulliConfig():
            return Bernoulli(config, channels)
        case CategoricalConfig():
            return Categorical(config, channels)
        case DiscretizedLogisticConfig():
            return DiscretizedLogistic(config, channels)
