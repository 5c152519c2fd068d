"""What a pipeline can refuse before its first stage is trained: numbers and data that a later stage cannot use."""

from typing import cast

from pipelines.base.distributed import check_precision
from pipelines.base.errors import UserError, prefixed
from pipelines.data import open_images
from pipelines.evaluate.classifier import SMALLEST_IMAGE, ClassifierTask
from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.evaluate.label_accuracy import checks_itself
from pipelines.recipes.pipeline import PipelineRecipe
from pipelines.training.config import TrainingConfig
from pipelines.training.loop import check_batch_size
from pipelines.training.metrics_log import check_trackers
from pipelines.training.prior_task import build_config
from pipelines.training.tokenizer_task import TokenizerTask
from tokenizer import Autoencoder


def classifier_recipe(recipe: PipelineRecipe) -> ClassifierRecipe | None:
    """The classifier that checks the labels of samples; None where there are none, or where pixels tell."""
    chosen, data = recipe.evaluate.classifier, recipe.tokenizer.data
    if recipe.prior.condition != "label" or checks_itself(data):
        return None
    plain = data.model_copy(update={"augment": type(data.augment)()})
    return ClassifierRecipe(
        output=recipe.output / "classifier", seed=chosen.seed, data=plain, width=chosen.width, training=chosen.training
    )


def check_numbers(recipe: PipelineRecipe, processes: int) -> None:
    """Raises UserError where a stage cannot be trained on this machine or with so many processes, whatever the data."""
    _check_training("tokenizer", recipe.tokenizer.training, processes)
    _check_training("prior", recipe.prior.training, processes)
    if (classifier := classifier_recipe(recipe)) is not None:
        _check_training("evaluate.classifier", classifier.training, processes)


def check_models_and_data(recipe: PipelineRecipe) -> None:
    """Open the data of every stage and measure every model.

    Raises:
        UserError: the data cannot be opened, it has no labels or no captions although the prior is conditioned on them,
            the tokenizer has no codes, or a model or a batch is larger than the memory of this machine.
    """
    stage = recipe.tokenizer
    task = TokenizerTask(stage.data, stage.model, stage.objective, stage.training, stage.seed)
    for split in recipe.encode.splits:
        if split not in ("train", "validation"):  # which the tokenizer's task has opened
            open_images(stage.data, split)
    classes = task.images.classes if recipe.prior.condition == "label" else None
    _check_labels(recipe, classes)
    if recipe.prior.condition == "caption" and not task.images.has_text:
        raise UserError(
            "prior.condition: found 'caption', but the data has no captions; expected 'none', or the column of "
            "captions in tokenizer.data.source.text"
        )
    _check_prior(recipe, cast(Autoencoder, task.phases["tokenizer"].phase.model), classes)
    if (classifier := classifier_recipe(recipe)) is not None:
        with prefixed("evaluate.classifier."):
            ClassifierTask(classifier)


def _check_training(stage: str, training: TrainingConfig, processes: int) -> None:
    with prefixed(f"{stage}."):
        check_precision(training.precision)
        check_trackers(training.trackers)
        check_batch_size(training, processes)


def _check_labels(recipe: PipelineRecipe, classes: list[str] | None) -> None:
    if recipe.prior.condition != "label":
        return
    if not classes:
        raise UserError("prior.condition: found 'label', but the data has no labels; expected 'none'")
    size = recipe.tokenizer.data.preprocess.size
    if classifier_recipe(recipe) is not None and (len(classes) < 2 or size < SMALLEST_IMAGE):
        raise UserError(
            f"prior.condition: found 'label' on {len(classes)} class(es) of {size} pixels; the classifier that checks "
            f"samples needs 2 classes and {SMALLEST_IMAGE} pixels; expected 'none'"
        )


def _check_prior(recipe: PipelineRecipe, model: Autoencoder, classes: list[str] | None) -> None:
    stage = recipe.prior
    if model.num_codes is None:
        raise UserError(
            f"tokenizer.model.bottleneck.kind: found {model.config.bottleneck.kind!r}, which has no codes; the prior "
            "needs a discrete one, such as vq or fsq"
        )
    with prefixed("prior."):
        num_classes = len(classes) if classes else None
        num_words = None if stage.caption is None else stage.caption.vocab_size
        build_config(model.code_grids, num_classes, num_words, stage.conditioning, stage.transformer, stage.training)
