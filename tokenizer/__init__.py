"""Stage one: pictures <-> latents or discrete codes. Imports neither `prior` nor `pipelines`."""

from tokenizer.autoencoder import Autoencoded, Autoencoder, AutoencoderConfig, evaluating
from tokenizer.backbones import BackboneConfig
from tokenizer.bottlenecks import BottleneckConfig, Bottlenecked
from tokenizer.codebook_health import CodebookHealth, CodeUsage
from tokenizer.likelihoods import LikelihoodConfig
from tokenizer.objective import AutoencoderPhase, ObjectiveConfig
from tokenizer.schedules import Schedule

__all__ = [
    "Autoencoded",
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderPhase",
    "BackboneConfig",
    "BottleneckConfig",
    "Bottlenecked",
    "CodeUsage",
    "CodebookHealth",
    "LikelihoodConfig",
    "ObjectiveConfig",
    "Schedule",
    "evaluating",
]
