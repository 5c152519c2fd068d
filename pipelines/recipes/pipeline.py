"""The recipe of a whole pipeline: both stages, encoding, sampling and evaluation."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.base.errors import UserError
from pipelines.base.recipe_files import find_recipe, override, validate
from pipelines.base.recipe_inheritance import read_recipe
from pipelines.data import SPLITS, Split
from pipelines.evaluate.classifier_recipe import TRAINING, Width
from pipelines.models.candidate_options import LIKELIHOOD_RATIO, CandidateOptions
from pipelines.recipes.stages import PriorRecipe, TokenizerRecipe
from pipelines.training.config import TrainingConfig
from prior import SamplingOptions


class EncodeOptions(BaseModel):
    """As `smalti encode`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    splits: tuple[Split, ...] = SPLITS
    num_shards: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=256, ge=1)


class SampleOptions(BaseModel):
    """`num_images` images, every class or every prompt in turn; `options` become the defaults of the image pipeline.
    `prompts`: what a prior by caption draws (None: the first captions of the split that is evaluated, each once).
    `candidates`: as many images more, each among the best of `num_candidates` of its prompt or label; the report
    compares both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    num_images: int = Field(default=64, ge=1, le=10_000_000)
    prompts: tuple[str, ...] | None = Field(default=None, min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    batch_size: int = Field(default=64, ge=1)
    options: SamplingOptions = SamplingOptions()
    candidates: CandidateOptions | None = None


class ClassifierOptions(BaseModel):
    """The classifier that checks labels where the data has no checker of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int = Field(default=0, ge=0)
    width: Width = 16
    training: TrainingConfig = TRAINING


class EvaluateOptions(BaseModel):
    """Figures over the first `max_images` images of a held-out split (None: all); `num_pairs` are shown rebuilt."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    split: Split = "test"
    max_images: int | None = Field(default=None, ge=1)
    num_pairs: int = Field(default=16, ge=1, le=1024)
    classifier: ClassifierOptions = ClassifierOptions()


class PipelineRecipe(BaseModel):
    """Both stages and what follows, in one folder. In the YAML, `tokenizer` and `prior` may be paths of recipes,
    relative to this one; where those write, and which tokens the prior reads, follows from `output`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["pipeline"] = "pipeline"
    output: Path
    tokenizer: TokenizerRecipe
    prior: PriorRecipe
    encode: EncodeOptions = EncodeOptions()
    sample: SampleOptions = SampleOptions()
    evaluate: EvaluateOptions = EvaluateOptions()

    @model_validator(mode="before")
    @classmethod
    def _follow_output(cls, content: Any) -> Any:
        match content:
            case {"output": str() | Path() as output, "tokenizer": dict(tokenizer), "prior": dict(prior)}:
                root = Path(output)
                tokenizer = {**tokenizer, "output": root / "tokenizer"}
                prior = {**prior, "output": root / "prior", "tokens": root / "tokens"}
                return {**content, "tokenizer": tokenizer, "prior": prior}
        return content

    @model_validator(mode="after")
    def _splits_suffice(self) -> Self:
        missing = {"train", "validation", self.evaluate.split} - set(self.encode.splits)
        if missing:
            raise ValueError(f"encode.splits leaves out {', '.join(sorted(missing))}, which prior or evaluate needs")
        return self

    @model_validator(mode="after")
    def _prompts_are_read(self) -> Self:
        if self.sample.prompts is not None and self.prior.condition != "caption":
            raise ValueError(
                f"sample.prompts needs prior.condition: caption, found prior.condition: {self.prior.condition}"
            )
        return self

    @model_validator(mode="after")
    def _guidance_is_trained(self) -> Self:
        guidance = self.sample.options.guidance_scale
        if guidance != 1 and self.prior.condition != "none" and self.prior.condition_dropout == 0:
            raise ValueError(
                f"sample.options.guidance_scale is {guidance}, but prior.condition_dropout is 0, so that the null "
                "condition that guidance needs is never trained; expected prior.condition_dropout above 0"
            )
        return self

    @model_validator(mode="after")
    def _candidates_can_be_compared(self) -> Self:
        if (candidates := self.sample.candidates) is None:
            return self
        if self.prior.condition == "none":
            raise ValueError("sample.candidates needs a prior with a condition, found prior.condition: none")
        if candidates.rerank == LIKELIHOOD_RATIO and self.prior.condition_dropout == 0:
            raise ValueError(
                "sample.candidates.rerank is 'likelihood_ratio', but prior.condition_dropout is 0, so that the "
                "likelihood of images without a condition is never trained; expected prior.condition_dropout above 0"
            )
        return self


def read_part(recipe: Path, part: Any) -> Any:
    """`tokenizer` or `prior` of a pipeline recipe: the block itself, or the file that it names beside the recipe."""
    return read_recipe(recipe.parent / part) if isinstance(part, str) else part


def load_pipeline(path: str | Path, overrides: list[str] | None = None) -> PipelineRecipe:
    """A pipeline recipe, with the recipes that it names put in place of their paths before overrides are applied
    (`tokenizer.training.steps=100`).

    Raises:
        UserError: as `load_recipe`.
    """
    path = find_recipe(path)
    content = read_recipe(path)
    if content.get("kind") != "pipeline":
        raise UserError(
            f"{path}: kind: found {content.get('kind')!r}, expected 'pipeline'; `smalti train` takes the others"
        )
    for part in ("tokenizer", "prior"):
        if part in content:
            content[part] = read_part(path, content[part])
    return validate(PipelineRecipe, override(content, overrides or []), path)
