"""The two stages handed to the loop: their phases, their batches, what is validated, published and drawn."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from pipelines.base import distributed, random_streams
from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_grid
from pipelines.base.recipe_files import dump
from pipelines.data import batch_indices, open_images, ordered_batches, training_loader
from pipelines.models.checkpoint import load_tokenizer, save_prior, save_tokenizer
from pipelines.recipes.stages import PriorRecipe, Recipe, TokenizerRecipe
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.statistics import refuse_collapsed
from pipelines.training.loop import Batch, Job, Phase, train
from pipelines.training.metrics_log import check_trackers
from pipelines.training.run_folder import RunFolder
from prior import (
    PriorConfig,
    PriorPhase,
    SamplingRequest,
    TokenPrior,
    Vocabulary,
    generate,
    sequence_bits,
)
from tokenizer import Autoencoder, AutoencoderPhase, evaluate
from tokenizer.codebook_health import CodeUsage


def train_recipe(recipe: Recipe, overwrite: bool = False) -> RunFolder:
    """Run a recipe, or continue it; a finished one is left as it is.

    Raises:
        UserError: the output folder holds another recipe's run, or the recipe does not fit its data.
    """
    folder = RunFolder(recipe.output)
    trackers = recipe.training.trackers
    check_trackers(trackers)
    accelerator = distributed.start(recipe.training.precision, trackers, folder.path if trackers else None)
    with accelerator.main_process_first():
        folder.open(recipe, overwrite and accelerator.is_main_process)
    if folder.finished:
        accelerator.print(f"{folder.path}: finished; nothing to do (--overwrite starts over)")
        return folder
    torch.manual_seed(recipe.seed)  # the initial weights
    with accelerator.main_process_first():  # so that a data set is downloaded once
        match recipe:
            case TokenizerRecipe():
                phases, job = _tokenizer_job(recipe, folder)
            case PriorRecipe():
                phases, job = _prior_job(recipe, folder)
    train(folder, phases, recipe.training, recipe.seed, job, accelerator)
    return folder


def _tokenizer_job(recipe: TokenizerRecipe, folder: RunFolder) -> tuple[dict[str, Phase], Job]:
    images, held_out = open_images(recipe.data, "train"), open_images(recipe.data, "validation")
    rows, size = range(min(len(held_out), recipe.training.validation_images)), recipe.training.batch_size

    def batches(start: int, rank: int, world: int) -> Iterator[Batch]:
        yield from training_loader(images, recipe.seed, size, recipe.training.steps, rank, world, start)

    def validate(modules: Mapping[str, nn.Module]) -> dict[str, float]:
        phase = cast(AutoencoderPhase, modules["tokenizer"])
        device = next(phase.parameters()).device
        model, seen, totals = phase.model, 0, {}
        usage = CodeUsage(model.num_codes, model.grid[2]) if model.num_codes is not None else None
        for batch in ordered_batches(held_out, rows, size):
            streams = [_posterior_stream(recipe.seed, row.key) for row in batch.metadata]
            found = evaluate(model, batch.image.to(device), recipe.objective, recipe.training.steps, streams)
            for name, values in found.figures.items():
                totals[name] = totals.get(name, 0.0) + values.double().sum().item()
            seen += len(batch)
            if usage and found.codes is not None:
                usage.update(found.codes)
        figures = {name: total / seen for name, total in totals.items()}
        if usage:
            health = usage.report()
            figures |= {"usage": health.usage, "perplexity": health.perplexity}
        return figures

    def publish(modules: Mapping[str, nn.Module], target: Path) -> None:
        phase = cast(AutoencoderPhase, modules["tokenizer"])
        save_tokenizer(target, phase.model, recipe.data.preprocess, card=_card(recipe, "tokenizer"))

    def draw(modules: Mapping[str, nn.Module], step: int) -> None:
        model = cast(AutoencoderPhase, modules["tokenizer"]).model
        originals = held_out.read_batch(range(min(16, len(held_out)))).image
        device = next(model.parameters()).device
        rebuilt = model.reconstruct(originals.to(device)).cpu()
        pairs = [tile for half in (slice(0, 8), slice(8, 16)) for tile in (*originals[half], *rebuilt[half])]
        save_grid(folder.path / "pictures" / f"reconstructions-{step:08d}.png", pairs, columns=8)
        if model.num_codes is None:
            drawn = model.sample(32, torch.Generator(device).manual_seed(recipe.seed)).cpu()
            save_grid(folder.path / "pictures" / f"samples-{step:08d}.png", drawn, columns=8)

    try:
        phase = AutoencoderPhase(Autoencoder(recipe.model), recipe.objective)
    except ValueError as error:
        raise UserError(f"objective.weights: {error}") from error
    return {"tokenizer": Phase(phase, recipe.training.optimizer)}, Job(batches, validate, publish, draw, watched="loss")


def _posterior_stream(seed: int, key: str) -> torch.Generator:
    """Where the latents of a held-out image are sampled from: the same at every validation, in any batch."""
    (word,) = random_streams.bits((seed, "posterior", key), np.zeros(1, np.int64), 1)[0]
    return torch.Generator().manual_seed(int(word >> np.uint64(1)))


def _card(recipe: Recipe, kind: str) -> str:
    return (
        f"# A {kind} of smalti\n\nTrained by `smalti train` with the recipe below; weights in `model.safetensors`, "
        f"checked against the hash in `config.json`.\n\n```yaml\n{dump(recipe)}```\n"
    )


def _classes(recipe: PriorRecipe, dataset: TokenDataset) -> tuple[str, ...] | None:
    """The names of the labels that the prior is conditioned on.

    Raises:
        UserError: `condition: label`, but the tokens carry no labels, or not in every row.
    """
    if recipe.condition == "none":
        return None
    for name in ("train", "validation"):
        labels = dataset.split(name).labels
        if dataset.spec.classes is None or labels is None or (labels < 0).any():
            raise UserError(
                f"condition: found 'label', but {recipe.tokens} has rows without a label in split {name!r}; "
                "expected 'none'"
            )
    return dataset.spec.classes


def _prior_job(recipe: PriorRecipe, folder: RunFolder) -> tuple[dict[str, Phase], Job]:
    dataset = TokenDataset.open(recipe.tokens)
    tokenizer = load_tokenizer(dataset.tokenizer_folder)
    dataset.spec.check_tokenizer(tokenizer.fingerprint, str(dataset.tokenizer_folder), str(recipe.tokens))
    refuse_collapsed(dataset)
    tokens, held_out = dataset.split("train"), dataset.split("validation")
    classes = _classes(recipe, dataset)
    rows, size = range(min(len(held_out), recipe.training.validation_images)), recipe.training.batch_size
    spec = dataset.spec
    anchors = dataset.baselines().bits_per_token(held_out.batch(rows)["codes"])

    def batches(start: int, rank: int, world: int) -> Iterator[Batch]:
        for step in range(start, recipe.training.steps):
            yield tokens.batch(batch_indices(recipe.seed, step, size, len(tokens), rank, world))

    def validate(modules: Mapping[str, nn.Module]) -> dict[str, float]:
        prior = cast(PriorPhase, modules["prior"]).model
        bits = 0.0
        for first in range(0, len(rows), size):
            batch = {name: value.to(prior.device) for name, value in held_out.batch(rows[first : first + size]).items()}
            bits += sequence_bits(prior, batch["codes"], batch["label"] if classes else None).sum().item()
        per_token = bits / len(rows) / spec.tokens_per_image
        return {"bits_per_token": per_token, "unigram_bits": anchors.unigram, "bigram_bits": anchors.bigram}

    def publish(modules: Mapping[str, nn.Module], target: Path) -> None:
        save_prior(target, cast(PriorPhase, modules["prior"]).model, spec, classes, card=_card(recipe, "prior"))

    def draw(modules: Mapping[str, nn.Module], step: int) -> None:
        prior = cast(PriorPhase, modules["prior"]).model
        labels = torch.arange(32, device=prior.device) % len(classes) if classes else None
        drawn = generate(prior, SamplingRequest(range(32), labels))
        pictures = tokenizer.model.decode_codes(drawn.codes.cpu())
        names = [classes[int(label)] for label in labels] if classes and labels is not None else None
        save_grid(folder.path / "pictures" / f"samples-{step:08d}.png", pictures, columns=8, captions=names)

    vocabulary = Vocabulary.of_labels_and_codes(spec.num_codes, spec.grid, len(classes) if classes else None)
    config = PriorConfig(
        vocabulary=vocabulary, transformer=recipe.transformer, condition_dropout=recipe.condition_dropout
    )
    phase = Phase(PriorPhase(TokenPrior(config)), recipe.training.optimizer)
    return {"prior": phase}, Job(batches, validate, publish, draw, watched="bits_per_token")
