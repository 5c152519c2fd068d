"""The recipes that `smalti train` takes: the two stages, and the classifier that checks labels of samples. The knobs
stand beside their owners; here they are put together.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.base.errors import UserError
from pipelines.base.recipe_files import find_recipe, override, validate
from pipelines.base.recipe_inheritance import read_recipe
from pipelines.data import DataConfig
from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.training.conditioning import CaptionOptions, Condition, Conditioning
from pipelines.training.config import TokenizerTrainingConfig, TrainingConfig
from prior import TransformerConfig
from tokenizer import AutoencoderConfig, ObjectiveConfig


class TokenizerRecipe(BaseModel):
    """Stage one. `model.image_size` and `model.channels` follow `data.preprocess` where the recipe leaves them out."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["tokenizer"] = "tokenizer"
    output: Path
    seed: int = Field(0, ge=0)
    data: DataConfig
    model: AutoencoderConfig
    objective: ObjectiveConfig
    training: TokenizerTrainingConfig

    @model_validator(mode="before")
    @classmethod
    def _follow_preprocess(cls, content: Any) -> Any:
        match content:
            case {"model": dict(model), "data": {"preprocess": {"size": size, **rest}}}:
                channels = 3 if rest.get("mode", "RGB") == "RGB" else 1
                return {**content, "model": {"image_size": size, "channels": channels, **model}}
        return content

    @model_validator(mode="after")
    def _agree(self) -> Self:
        prepared = (self.data.preprocess.size, self.data.preprocess.channels)
        if prepared != (self.model.image_size, self.model.channels):
            raise ValueError(
                f"data.preprocess gives size {prepared[0]} with {prepared[1]} channel(s), model.image_size and "
                f"model.channels are {self.model.image_size} and {self.model.channels}; expected the same"
            )
        return self

    @model_validator(mode="after")
    def _discriminator_has_the_optimizer(self) -> Self:
        if self.training.discriminator_optimizer and not self.objective.discriminator:
            raise ValueError("training.discriminator_optimizer needs objective.discriminator")
        return self


class PriorRecipe(BaseModel):
    """Stage two, on a token dataset. `condition: label` needs tokens that carry labels, `condition: caption` such that
    carry captions, and `caption` says how to read them. Rows without one are trained under the null condition."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["prior"] = "prior"
    output: Path
    seed: int = Field(0, ge=0)
    tokens: Path
    condition: Condition = "none"
    condition_dropout: float = Field(0.1, ge=0, lt=1)
    caption: CaptionOptions | None = Field(default=None, description="of `condition: caption`; null: its defaults")
    transformer: TransformerConfig = TransformerConfig()
    training: TrainingConfig

    @model_validator(mode="before")
    @classmethod
    def _captions_have_options(cls, content: Any) -> Any:
        match content:
            case {"condition": "caption"}:
                return {**content, "caption": content.get("caption") or {}}
        return content

    @model_validator(mode="after")
    def _options_have_captions(self) -> Self:
        if self.caption is not None and self.condition != "caption":
            raise ValueError(f"caption: found options of captions under condition {self.condition!r}, expected none")
        return self

    @property
    def conditioning(self) -> Conditioning:
        return Conditioning(self.condition, self.condition_dropout, self.caption or CaptionOptions())


Recipe = TokenizerRecipe | PriorRecipe | ClassifierRecipe


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe of `smalti train` from YAML with overrides.

    Raises:
        UserError: as `read_recipe`, `override` and `validate`; or the kind is another one.
    """
    path = find_recipe(path)
    content = override(read_recipe(path), overrides or [])
    match content.get("kind"):
        case "tokenizer":
            return validate(TokenizerRecipe, content, path)
        case "prior":
            return validate(PriorRecipe, content, path)
        case "classifier":
            return validate(ClassifierRecipe, content, path)
        case "pipeline":
            raise UserError(
                f"{path}: kind: found 'pipeline'; `smalti run {path}` runs it, `smalti train` takes tokenizer, "
                "prior or classifier"
            )
        case other:
            raise UserError(
                f"{path}: kind: found {other!r}, expected 'tokenizer', 'prior' or 'classifier' (or 'pipeline' for "
                "`smalti run`)"
            )
