"""What a recipe may say about training."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines.training.metrics_log import Tracker
from pipelines.training.optimizer import OptimizerConfig

Precision = Literal["fp32", "bf16", "fp16"]

# Of TrainingConfig: how a run is watched and stored, never what it computes.
BOOKKEEPING = ("log_every", "save_every", "keep_states", "trackers")


class TrainingConfig(BaseModel):
    """How long and how a model is trained. One step is one update of every phase from `batch_size` examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int = Field(gt=0)
    batch_size: int = Field(
        default=128, gt=0, description="examples per step, over all processes and accumulated parts"
    )
    gradient_accumulation_steps: int = Field(
        default=1, gt=0, description="parts that a process cuts its share of the batch into"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Precision = Field(
        default="fp32", description="of the arithmetic; weights and optimizer are always float32"
    )
    ema_decay: float | None = Field(
        default=0.999, gt=0, lt=1, description="weight average that is validated and published"
    )
    compile: bool = Field(default=False, description="torch.compile the phases")
    validate_every: int = Field(default=500, gt=0)
    validation_images: int = Field(
        default=2048, gt=0, description="images of the held-out split that a validation reads"
    )
    patience: int | None = Field(
        default=None,
        gt=0,
        description="validations without a gain after which the run ends before `steps`; null: never, the only choice "
        "with regularizers or a discriminator, which held-out figures leave out",
    )
    save_every: int = Field(default=500, gt=0)
    keep_states: int = Field(default=2, gt=0, description="resume states that are kept")
    log_every: int = Field(default=50, gt=0)
    trackers: tuple[Tracker, ...] = ()


class TokenizerTrainingConfig(TrainingConfig):
    """Of stage one."""

    discriminator_optimizer: OptimizerConfig | None = Field(
        default=None, description="of the phase of a discriminator; null: a constant rate of 1e-4, betas 0.5 and 0.9"
    )
