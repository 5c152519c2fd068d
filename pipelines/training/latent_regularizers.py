"""Regularizers and the discriminator of the latents, as the tokenizer's task sees them: sizes, and the second phase."""

from collections.abc import Mapping

from torch import nn

from pipelines.base.errors import UserError
from pipelines.base.memory_limits import check_memory
from pipelines.training.config import TokenizerTrainingConfig
from pipelines.training.optimizer import OptimizerConfig
from pipelines.training.size_limits import examples_at_once
from pipelines.training.task import OptimizedPhase
from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderPhase, ObjectiveConfig
from tokenizer.regularizers import LatentDiscriminator, LatentDiscriminatorPhase

# That of FactorVAE (Kim & Mnih 2018, arXiv 1802.05983, appendix A).
DISCRIMINATOR_OPTIMIZER = OptimizerConfig(
    learning_rate=1e-4, betas=(0.5, 0.9), warmup=0, min_lr_ratio=1, max_grad_norm=None
)


def trained_modules(model: AutoencoderConfig, objective: ObjectiveConfig) -> nn.Module:
    """Everything that has weights, to be measured."""
    modules: list[nn.Module] = [autoencoder := Autoencoder(model)]
    if objective.discriminator:
        # A latent has at least so many elements: without memory no image can be encoded to see its shape.
        modules.append(LatentDiscriminator(objective.discriminator, autoencoder.bottleneck.dim))
    return nn.ModuleList(modules)


def check_regularizers(phase: AutoencoderPhase, training: TokenizerTrainingConfig) -> None:
    """Raises UserError where a regularizer or the discriminator cannot be estimated from the images that a process
    holds at once, or takes more memory than the machine has.
    """
    images, objective = examples_at_once(training), phase.objective
    shaping = [("regularizers", regularizer) for regularizer in objective.regularizers]
    shaping += [("discriminator", objective.discriminator)] if objective.discriminator else []
    for option, options in shaping:
        try:
            options.check_batch(images)
        except ValueError as error:
            raise UserError(
                f"objective.{option}: {options.kind}: {error} (training.batch_size, over processes and accumulated "
                "parts)"
            ) from error
    if not objective.regularizers:
        return
    elements = phase.model.probe().z[0, 0].numel()
    for regularizer in objective.regularizers:
        name = f"objective.regularizers: {regularizer.kind}"
        # A float32 for each element of each pair of latent and image.
        check_memory(
            4 * images**2 * objective.draws * elements, f"{name} of {images:,} images at once (training.batch_size)"
        )


def phases_of(autoencoder: AutoencoderPhase, training: TokenizerTrainingConfig) -> Mapping[str, OptimizedPhase]:
    """The autoencoder's phase, and after it that of its discriminator if there is one."""
    phases = {"tokenizer": OptimizedPhase(autoencoder, training.optimizer)}
    if autoencoder.discriminator is not None:
        phase = LatentDiscriminatorPhase(autoencoder.discriminator)
        phases["discriminator"] = OptimizedPhase(phase, training.discriminator_optimizer or DISCRIMINATOR_OPTIMIZER)
    return phases
