"""Stage two as a task of the training loop."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.first_process import first_has_checked
from pipelines.base.image_grids import save_grid
from pipelines.data import batch_indices
from pipelines.models.checkpoint import load_tokenizer, save_prior
from pipelines.tokens.captions import condition_of, distinct_captions
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.statistics import refuse_collapsed
from pipelines.training.captions import check_captions, train_captions, training_words
from pipelines.training.collective import Collective
from pipelines.training.conditioning import Conditioning
from pipelines.training.config import TrainingConfig
from pipelines.training.size_limits import check_sizes
from pipelines.training.task import Models, OptimizedPhase, TensorBatch
from pipelines.training.validation import block_size, mean_figures, own_rows
from prior import (
    CaptionTokenizer,
    PriorConfig,
    PriorPhase,
    SamplingRequest,
    TokenPrior,
    TransformerConfig,
    Vocabulary,
    generate,
    sequence_bits,
)
from tokenizer import CodeGrids

SAMPLES_SHOWN = 32


class PriorTask:
    """A transformer, trained on the token dataset in `tokens`. `card` is published with the weights. `captions`: the
    tokenizer of captions of the run that is continued; without it, one is trained where captions are asked for.

    Raises:
        UserError: no token dataset, tokens of another tokenizer or of a collapsed codebook, or no labels or captions
            where they are asked for.
    """

    monitor = "bits_per_token"
    best_is_latest = False

    def __init__(
        self,
        tokens: Path,
        conditioning: Conditioning,
        transformer: TransformerConfig,
        training: TrainingConfig,
        seed: int,
        card: str = "",
        captions: CaptionTokenizer | None = None,
    ):
        self.training, self.seed, self.card = training, seed, card
        self.dataset = dataset = TokenDataset.open(tokens)
        self.spec = dataset.spec
        self.tokenizer = load_tokenizer(dataset.tokenizer_folder)
        self.spec.check_tokenizer(self.tokenizer.fingerprint, str(dataset.tokenizer_folder), str(tokens))
        if not first_has_checked():
            refuse_collapsed(dataset)
        self.tokens, self.held_out = dataset.split("train"), dataset.split("validation")
        self.rows = min(len(self.held_out), training.validation_images)
        self.conditioning = conditioning
        self.classes = classes_of(dataset, conditioning.dropout) if conditioning.condition == "label" else None
        self.captions = None
        if conditioning.condition == "caption":
            check_captions(dataset, conditioning.dropout)
            self.captions = captions or train_captions(dataset, conditioning.caption)
        num_words = self.captions.num_words if self.captions else None
        num_classes = len(self.classes) if self.classes else None
        config = build_config(self.spec.code_grids, num_classes, num_words, conditioning, transformer, training)
        self.phases = {"prior": OptimizedPhase(PriorPhase(TokenPrior(config)), training.optimizer)}
        self._baselines: dict[str, float] | None = None

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[TensorBatch]:
        size, options = self.training.batch_size, self.conditioning.caption
        for step in range(start_step, self.training.steps):
            rows = batch_indices(self.seed, step, size, len(self.tokens), rank, world)
            batch = self.tokens.batch(rows)
            if self.captions is not None:
                batch["caption"] = training_words(self.captions, options, self.tokens, rows, self.seed, step)
            yield batch

    def validate(self, models: Models, collective: Collective) -> dict[str, float]:
        """Bits per token of held-out images, beside what the unigram and the bigram need for the same images; where
        there are captions, also without them.
        """
        prior, size = token_prior(models), block_size(self.training)
        rows = own_rows(self.rows, size, collective)

        def blocks() -> Iterator[dict[str, Tensor]]:
            for first in range(0, len(rows), size):
                part = rows[first : first + size]
                batch = self.held_out.batch(part)
                condition = condition_of(self.held_out, part, batch, prior.vocabulary, self.captions)
                codes = batch["codes"].to(collective.device)
                bits = sequence_bits(prior, codes, None if condition is None else condition.to(collective.device))
                found = {"bits_per_token": bits / self.spec.tokens_per_image}
                if self.captions is not None and prior.can_be_guided:
                    found["bits_per_token_without_caption"] = sequence_bits(prior, codes) / self.spec.tokens_per_image
                yield found

        return mean_figures(blocks(), collective) | self.baselines(collective)

    def baselines(self, collective: Collective) -> dict[str, float]:
        """Bits per token of the count baselines that are stored with the tokens; read once, by the first process."""
        if self._baselines is None:
            found: dict[str, float] = {}
            if collective.is_first:
                held_out = self.held_out.batch(range(self.rows))["codes"]
                bits = self.dataset.baselines().bits_per_token(held_out)
                found = {"unigram_bits": bits.unigram, "bigram_bits": bits.bigram}
            self._baselines = collective.from_first(found)
        return self._baselines

    def publish(self, models: Models, folder: Path) -> None:
        save_prior(folder, token_prior(models), self.spec, self.classes, self.card, self.captions)

    def save_figures(self, models: Models, folder: Path, step: int) -> None:
        """Samples, of every class or of held-out captions in turn."""
        prior = token_prior(models)
        condition, titles = self._shown_conditions(prior)
        samples = generate(prior, SamplingRequest(range(SAMPLES_SHOWN), condition))
        images = self.tokenizer.model.decode_codes(samples.codes.cpu())
        save_grid(folder / f"samples-{step:08d}.png", images, columns=8, captions=titles)

    def _shown_conditions(self, prior: TokenPrior) -> tuple[Tensor | None, list[str] | None]:
        """What the samples of a figure are drawn under, and their titles."""
        if self.captions is not None:
            texts = distinct_captions(self.held_out, SAMPLES_SHOWN) or distinct_captions(self.tokens, SAMPLES_SHOWN)
            texts = [texts[i % len(texts)] for i in range(SAMPLES_SHOWN)]
            return self.captions.encode(texts, prior.vocabulary.condition.length).to(prior.device), texts
        if self.classes is None:
            return None, None
        labels = torch.arange(SAMPLES_SHOWN, device=prior.device) % len(self.classes)
        return labels, [self.classes[int(label)] for label in labels]


def build_config(
    grids: CodeGrids,
    num_classes: int | None,
    num_words: int | None,
    conditioning: Conditioning,
    transformer: TransformerConfig,
    training: TrainingConfig,
) -> PriorConfig:
    """The configuration of a prior over codes on these grids, by captions of `num_words` different words or by one of
    `num_classes` labels; None of both: it is unconditional.

    Raises:
        UserError: training it takes more memory than there is.
    """
    levels, caption = [(grid.num_codes, grid.axes) for grid in grids], conditioning.caption
    if num_words is None:
        vocabulary = Vocabulary.of_labels_and_levels(levels, num_classes)
    else:
        vocabulary = Vocabulary.of_caption_and_levels(levels, num_words, caption.max_length)
    config = PriorConfig(
        vocabulary=vocabulary,
        transformer=transformer,
        condition_dropout=conditioning.dropout,
        text_weight=caption.text_weight,
        predict_pads=caption.predict_pads,
    )
    logits = vocabulary.code_length * vocabulary.most_codes + vocabulary.condition.length * (num_words or 0)
    check_sizes(training, lambda: TokenPrior(config), 4 * logits)
    return config


def token_prior(models: Models) -> TokenPrior:
    return cast(TokenPrior, models["prior"])


def classes_of(dataset: TokenDataset, dropout: float) -> tuple[str, ...]:
    """The names of the labels. A row without one has the null condition.

    Raises:
        UserError: no training row has a label; or only held-out rows lack one, and without `dropout` the null condition
            is never trained.
    """
    classes, labels = dataset.spec.classes, dataset.split("train").labels
    if classes is None or labels is None or (labels < 0).all():
        raise UserError(f"condition: found 'label', but {dataset.folder} has no labels; expected 'none'")
    held_out = dataset.split("validation").labels
    if held_out is not None and (held_out < 0).any() and (labels >= 0).all() and not dropout:
        raise UserError(
            f"condition_dropout: found 0, but {dataset.folder} has rows without a label in split 'validation', and the "
            "null condition that stands for it is never trained; expected a number above 0"
        )
    return classes
