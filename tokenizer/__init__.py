"""Stage one: images <-> latents or discrete codes. Imports neither `prior` nor `pipelines`."""

from tokenizer.autoencoder import Autoencoder, AutoencoderOutput, evaluating
from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.backbones import BackboneConfig
from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, BottleneckOutput, Quantizer
from tokenizer.code_grids import CodeGrid, CodeGrids, code_axes, join_codes, split_codes
from tokenizer.codebook_health import CodebookHealth, CodeUsage
from tokenizer.conditions import ConditionConfig
from tokenizer.evaluation import Evaluation, evaluate
from tokenizer.fidelity import psnr
from tokenizer.importance import LikelihoodBounds, likelihood_bounds
from tokenizer.latent_priors import LatentPriorConfig
from tokenizer.level_usage import LevelUsage, OverallHealth, overall_health
from tokenizer.likelihoods import LikelihoodConfig
from tokenizer.objective import AutoencoderPhase, ObjectiveConfig
from tokenizer.schedules import Schedule

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderOutput",
    "AutoencoderPhase",
    "BackboneConfig",
    "Bottleneck",
    "BottleneckConfig",
    "BottleneckOutput",
    "CodeGrid",
    "CodeGrids",
    "CodeUsage",
    "CodebookHealth",
    "ConditionConfig",
    "Evaluation",
    "LatentPriorConfig",
    "LevelUsage",
    "LikelihoodBounds",
    "LikelihoodConfig",
    "ObjectiveConfig",
    "OverallHealth",
    "Quantizer",
    "Schedule",
    "code_axes",
    "evaluate",
    "evaluating",
    "join_codes",
    "likelihood_bounds",
    "overall_health",
    "psnr",
    "split_codes",
]
