"""What a classifier is trained from. Apart from the classifier, so that a recipe is checked without its imports."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines.data import DataConfig
from pipelines.training.config import TrainingConfig

Width = Annotated[int, Field(ge=1, le=4096)]
TRAINING = TrainingConfig.model_validate(
    {
        "steps": 1500,
        "batch_size": 128,
        "optimizer": {"learning_rate": 4e-3, "weight_decay": 0.01, "betas": (0.9, 0.99), "min_lr_ratio": 0.0},
        "ema_decay": None,
        "validate_every": 500,
    }
)


class ClassifierRecipe(BaseModel):
    """What a classifier is trained from; the same recipe gives the same weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["classifier"] = "classifier"
    output: Path
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    width: Width = 16
    training: TrainingConfig = TRAINING
