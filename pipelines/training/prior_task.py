"""Stage two as a task of the training loop."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.first_process import first_has_checked
from pipelines.base.image_grids import save_grid
from pipelines.data import batch_indices
from pipelines.models.checkpoint import load_tokenizer, save_prior
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.statistics import refuse_collapsed
from pipelines.training.collective import Collective
from pipelines.training.config import TrainingConfig
from pipelines.training.size_limits import check_sizes
from pipelines.training.task import Models, OptimizedPhase, TensorBatch
from pipelines.training.validation import block_size, mean_figures, own_rows
from prior import (
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


@dataclass(frozen=True)
class Conditioning:
    """Whether a prior reads the labels of its tokens, and how often training drops them."""

    condition: Literal["none", "label"]
    dropout: float


class PriorTask:
    """A transformer, trained on the token dataset in `tokens`. `card` is published with the weights.

    Raises:
        UserError: no token dataset, tokens of another tokenizer or of a collapsed codebook, or no labels where labels
            are asked for.
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
        self.classes = classes_of(dataset, conditioning.dropout) if conditioning.condition == "label" else None
        num_classes = len(self.classes) if self.classes else None
        config = build_config(self.spec.code_grids, num_classes, conditioning.dropout, transformer, training)
        self.phases = {"prior": OptimizedPhase(PriorPhase(TokenPrior(config)), training.optimizer)}
        self._baselines: dict[str, float] | None = None

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[TensorBatch]:
        size = self.training.batch_size
        for step in range(start_step, self.training.steps):
            yield self.tokens.batch(batch_indices(self.seed, step, size, len(self.tokens), rank, world))

    def validate(self, models: Models, collective: Collective) -> dict[str, float]:
        """Bits per token of held-out images, beside what the unigram and the bigram need for the same images."""
        prior, size = token_prior(models), block_size(self.training)
        rows = own_rows(self.rows, size, collective)

        def blocks() -> Iterator[dict[str, Tensor]]:
            for first in range(0, len(rows), size):
                batch = self.held_out.batch(rows[first : first + size])
                moved = {name: value.to(collective.device) for name, value in batch.items()}
                bits = sequence_bits(prior, moved["codes"], moved["label"] if self.classes else None)
                yield {"bits_per_token": bits / self.spec.tokens_per_image}

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
        save_prior(folder, token_prior(models), self.spec, self.classes, card=self.card)

    def save_figures(self, models: Models, folder: Path, step: int) -> None:
        """Samples, every class in turn."""
        prior = token_prior(models)
        labels = torch.arange(32, device=prior.device) % len(self.classes) if self.classes else None
        samples = generate(prior, SamplingRequest(range(32), labels))
        images = self.tokenizer.model.decode_codes(samples.codes.cpu())
        captions = [self.classes[int(label)] for label in labels] if self.classes and labels is not None else None
        save_grid(folder / f"samples-{step:08d}.png", images, columns=8, captions=captions)


def build_config(
    grids: CodeGrids,
    num_classes: int | None,
    condition_dropout: float,
    transformer: TransformerConfig,
    training: TrainingConfig,
) -> PriorConfig:
    """The configuration of a prior over codes on these grids.

    Raises:
        UserError: training it takes more memory than there is.
    """
    vocabulary = Vocabulary.of_labels_and_levels([(grid.num_codes, grid.axes) for grid in grids], num_classes)
    config = PriorConfig(vocabulary=vocabulary, transformer=transformer, condition_dropout=condition_dropout)
    check_sizes(training, lambda: TokenPrior(config), 4 * vocabulary.code_length * vocabulary.most_codes)
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
