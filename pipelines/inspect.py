"""What is in this folder? `smalti inspect`: facts, the codebook's health, and a check against the original images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from pipelines.base import distributed
from pipelines.base.documents import read_json_if_valid, read_json_mapping, read_yaml
from pipelines.base.errors import UserError
from pipelines.base.output_folder import check_output_file
from pipelines.base.recipe_files import validate
from pipelines.data import DataConfig, Split
from pipelines.evaluate.classifier import LoadedClassifier, load_classifier
from pipelines.evaluate.held_out import open_held_out
from pipelines.evaluate.latent_health_figure import draw_latent_health
from pipelines.evaluate.latent_window import latent_window
from pipelines.evaluate.report import is_complete, rows
from pipelines.models.checkpoint import LoadedPrior, LoadedTokenizer, load_prior, load_tokenizer, resolve_folder
from pipelines.recipes.data_arguments import data_of, split_of
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.encoded_window import encoded_window
from pipelines.tokens.encoding_spec import compute_batch
from pipelines.tokens.facts import Facts, dataset_facts, grids_text, shortened
from pipelines.tokens.health_figure import draw_health
from pipelines.tokens.statistics import TokenWindow, codebook_health, window_of
from pipelines.tokens.verify import VerificationResult, verify
from pipelines.training.metrics_log import read_metrics
from tokenizer import Autoencoder, CodebookHealth
from tokenizer.latent_health import LatentHealth

MOST_IMAGES = 10_000  # from which the health of a latent is measured
EXPECTED = "a tokenizer, prior, classifier, image pipeline, pipeline or run folder, or a token dataset"


@dataclass
class Inspection:
    """What was found: `facts` in order, and the `health` of the codebook of each level, coarse to fine, or the
    `latent_health`, with its `figure` where it could be measured.
    """

    kind: str
    folder: Path
    facts: Facts
    health: tuple[CodebookHealth, ...] = ()
    latent_health: LatentHealth | None = None
    figure: Path | None = None
    verified: VerificationResult | None = None
    notes: list[str] = field(default_factory=list)


def inspect(
    folder: str | Path, verify_rows: int | None = None, split: str | None = None, figure: Path | None = None
) -> Inspection:
    """Look into a tokenizer, prior, classifier, image pipeline or run folder, or a token dataset, and print a table.

    Codebook health needs tokens: those of `split` of a token dataset (default: its first), or of the data that a
    tokenizer's run was trained on (default: validation). The health of a continuous latent is that of the first
    10,000 images of that split. `verify_rows` encodes so many random rows of a token dataset again. `figure` is where
    the figure of codebook or latent goes (default: health.png in the folder, if it can be written there).

    Raises:
        UserError: none of these folders, a damaged one, or a `figure` that cannot be written or is no .png file.
    """
    folder = Path(folder)
    if figure is not None:
        check_output_file(figure, ".png")
    found = _look(folder, verify_rows, split, figure)
    _print(found)
    return found


def _look(folder: Path, verify_rows: int | None, split: str | None, figure: Path | None) -> Inspection:
    if (folder / "token_spec.json").is_file():
        return inspect_tokens(folder, verify_rows, split, figure)
    if verify_rows is not None:
        raise UserError(f"{folder}: is not a token dataset (no token_spec.json), which --verify needs")
    if (folder / "model_index.json").is_file():
        return inspect_image_pipeline(folder)
    if (folder / "recipe.yaml").is_file():
        recipe = read_yaml(folder / "recipe.yaml")
        if recipe.get("kind") == "pipeline":
            return inspect_pipeline(folder)
        return inspect_run(folder, recipe, split_of(split or "validation"), figure)
    if (folder / "config.json").is_file():
        return inspect_model(folder, split_of(split or "validation"), figure)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; expected {EXPECTED}")
    inside = _inside(folder)
    hint = f"; it holds {inside}: inspect one of these" if inside else ""
    raise UserError(f"{folder}: expected {EXPECTED}{hint}")


def _inside(folder: Path) -> str:
    """The folders directly inside this one that can be inspected."""
    marks = ("config.json", "token_spec.json", "model_index.json", "recipe.yaml")
    names = sorted({mark.parent.name for name in marks for mark in folder.glob(f"*/{name}")})
    return ", ".join(f"{name}/" for name in names)


def inspect_tokens(folder: Path, verify_rows: int | None, split: str | None, figure: Path | None) -> Inspection:
    dataset = TokenDataset.open(folder)
    window = window_of(dataset.split(split or dataset.splits[0]))
    tokenizer = load_tokenizer(dataset.tokenizer_folder, _device())
    dataset.spec.check_tokenizer(tokenizer.fingerprint, str(tokenizer.folder), str(folder))
    found = Inspection("token dataset", folder, dataset_facts(dataset))
    _add_health(found, window, tokenizer.model, figure)
    if verify_rows is not None:
        found.verified = verify(dataset, tokenizer, verify_rows, split)
    return found


def inspect_model(folder: Path, split: Split = "validation", figure: Path | None = None) -> Inspection:
    match read_json_mapping(folder / "config.json").get("format"):
        case "smalti-tokenizer/1":
            tokenizer = load_tokenizer(folder, _device())
            found = Inspection("tokenizer", folder, _tokenizer_facts(tokenizer))
            if tokenizer.model.num_codes is not None:
                found.notes.append("codebook health needs tokens: inspect its run, or a token dataset that it wrote")
            elif not (folder.parent / "recipe.yaml").is_file():
                found.notes.append("the health of a latent needs images: inspect its run, or see `smalti evaluate`")
            else:
                try:
                    _add_latent_health(found, tokenizer, data_of(None, folder), split, figure)
                except UserError as error:  # the model is there all the same
                    found.notes.append(f"the health of the latent is not known: {error}")
            return found
        case "smalti-prior/1":
            return Inspection("prior", folder, _prior_facts(load_prior(folder)))
        case "smalti-classifier/1":
            return Inspection("classifier", folder, _classifier_facts(load_classifier(folder)))
        case other:
            raise UserError(f"{folder / 'config.json'}: found format {other!r}, expected {EXPECTED}")


def inspect_image_pipeline(folder: Path) -> Inspection:
    tokenizer, prior = load_tokenizer(folder / "tokenizer"), load_prior(folder / "prior")
    prior.spec.check_tokenizer(tokenizer.fingerprint, str(folder / "tokenizer"), f"the tokens of {folder / 'prior'}")
    facts = [(f"tokenizer: {name}", text) for name, text in _tokenizer_facts(tokenizer)]
    facts += [(f"prior: {name}", text) for name, text in _prior_facts(prior)]
    return Inspection("image pipeline", folder, facts)


def inspect_pipeline(folder: Path) -> Inspection:
    """What `smalti run` writes: whether it is finished, the figures of its report, and which parts say more."""
    report = read_json_if_valid(folder / "report.json")
    finished = report is not None and is_complete(report)
    found = Inspection("pipeline", folder, [("recipe", "pipeline")])
    found.facts.append(("state", "finished" if finished else "unfinished: rerun `smalti run` to go on"))
    if report is not None and finished:
        found.facts += rows(report)
    if inside := _inside(folder):
        found.notes.append(f"it holds {inside}: inspect one of these to know more")
    return found


def inspect_run(folder: Path, recipe: dict[str, Any], split: Split, figure: Path | None) -> Inspection:
    """A run: how far it is, its last figures, its best model; a tokenizer's health on a split of its data."""
    found = Inspection(f"run of a {recipe.get('kind')}", folder, _progress_facts(folder, recipe))
    try:
        model_folder = resolve_folder(folder)
    except UserError:
        found.notes.append("no model was saved yet")
        return found
    found.facts.append(("model", model_folder.name))
    if recipe.get("kind") != "tokenizer":
        found.facts += inspect_model(model_folder).facts
        return found
    tokenizer = load_tokenizer(model_folder, _device())
    found.facts += _tokenizer_facts(tokenizer)
    data = validate(DataConfig, recipe.get("data"), folder / "recipe.yaml")
    if tokenizer.model.num_codes is None:
        _add_latent_health(found, tokenizer, data, split, figure)
    else:
        _add_health(found, encoded_window(tokenizer, data, split), tokenizer.model, figure)
    return found


def _progress_facts(folder: Path, recipe: dict[str, Any]) -> Facts:
    """The step that a run has reached, and its last figures."""
    lines, training = read_metrics(folder / "metrics.jsonl"), recipe.get("training")
    steps = training.get("steps") if isinstance(training, dict) else None
    done = "finished" if (folder / "done.json").is_file() else "unfinished: rerun `smalti train` to go on"
    facts = [
        ("recipe", str(recipe.get("kind"))),
        ("state", f"step {lines[-1]['step'] if lines else 0} of {steps}, {done}"),
    ]
    for name in ("train", "validation"):
        last = next((line for line in reversed(lines) if line["split"] == name), None)
        if last is not None:
            figures = (f"{k} {v:.4g}" for k, v in last.items() if isinstance(v, int | float) and k != "step")
            facts.append((f"last {name}", f"step {last['step']}: {', '.join(figures)}"))
    return facts


def _add_health(found: Inspection, window: TokenWindow, model: Autoencoder, figure: Path | None) -> None:
    if not window.rows:
        found.notes.append(f"split {window.name!r} has no rows, so nothing can be said about the codebook")
        return
    found.health = health = codebook_health(window, model.quantizer.embeddings)
    _draw(found, figure, lambda path: draw_health(path, window, health, model))
    for level, state in enumerate(health, 1):
        seen = f"{state.usage:.1%} used over {state.tokens:,} tokens of {window.name}"
        name = "codebook" if len(health) == 1 else f"codebook {level} of {len(health)}, grid {window.grids[level - 1]}"
        found.facts.append((name, f"{seen}, perplexity {state.perplexity:.1f}\n{state.verdict}: {state.reason}"))


def _add_latent_health(
    found: Inspection, tokenizer: LoadedTokenizer, data: DataConfig, split: Split, figure: Path | None
) -> None:
    images = open_held_out(tokenizer, data.model_copy(update={"on_unreadable": "skip"}), split)
    size = compute_batch(tokenizer.preprocess.size, _device())
    rows = range(min(len(images), MOST_IMAGES))
    health = latent_window(tokenizer.model, images, rows, size, keep_means=False).health
    assert isinstance(health, LatentHealth)  # the caller's model is continuous
    found.latent_health = health
    _draw(found, figure, lambda path: draw_latent_health(path, health, f"{found.folder.name}, {split}"))
    found.facts.append(("latent", f"{health.images:,} images of {split}\n{health.verdict}: {health.reason}"))


def _draw(found: Inspection, figure: Path | None, draw: Callable[[Path], Path]) -> None:
    """The figure where it was asked for, else in the folder if it can be written there."""
    target = figure or found.folder / "health.png"
    try:
        found.figure = draw(target)
    except OSError as error:
        if figure is not None:  # asked for
            raise
        found.notes.append(f"no figure: {target} cannot be written ({error.strerror})")


def _device() -> torch.device:
    return distributed.start().device


def _condition_facts(loaded: LoadedTokenizer) -> Facts:
    if (condition := loaded.model.config.condition) is None:
        return []
    names = "" if loaded.classes is None else f": {', '.join(loaded.classes)}"
    return [("condition", f"{condition.kind}, {condition.num_classes} labels{names}")]


def _tokenizer_facts(loaded: LoadedTokenizer) -> Facts:
    model, config = loaded.model, loaded.model.config
    facts = [
        (
            "images",
            f"{config.image_size} x {config.image_size} {loaded.preprocess.mode}, crop {loaded.preprocess.crop}",
        ),
        ("encoder", f"{config.backbone.kind}, {_count(model.encoder)} parameters; decoder {_count(model.decoder)}"),
        *_condition_facts(loaded),
        ("likelihood", config.likelihood.kind),
        ("fingerprint", f"{loaded.fingerprint[:12]}…"),
    ]
    if model.num_codes is None:
        shapes = " + ".join(f"{height} x {width} x {dim}" for dim, height, width in model.latent_shapes)
        latent = f"{config.bottleneck.kind}: continuous, {shapes}"
    else:
        bits = sum(grid.length * (grid.num_codes - 1).bit_length() for grid in model.code_grids)
        raw = config.image_size**2 * config.channels * 8
        latent = (
            f"{config.bottleneck.kind}: {grids_text(model.code_grids)}: "
            f"{bits:,} bits an image, {raw / max(bits, 1):.0f} times fewer than its pixels"
        )
    return [facts[0], ("bottleneck", latent), *facts[1:]]


def _prior_facts(loaded: LoadedPrior) -> Facts:
    spec = loaded.spec
    return [
        ("network", f"{_count(loaded.model)} parameters"),
        ("tokens", f"{spec.tokens_per_image} of {grids_text(spec.code_grids)}"),
        *_prior_condition_facts(loaded),
        ("tokenizer", f"{spec.tokenizer.kind}, fingerprint {spec.tokenizer.fingerprint[:12]}…"),
    ]


def _prior_condition_facts(loaded: LoadedPrior) -> Facts:
    if loaded.captions is None:
        return [("classes", shortened(loaded.classes))]
    length = loaded.model.vocabulary.condition.length
    return [("captions", f"of at most {length} tokens, {loaded.captions.num_words:,} different ones")]


def _classifier_facts(loaded: LoadedClassifier) -> Facts:
    prepared = loaded.preprocess
    return [
        ("images", f"{prepared.size} x {prepared.size} {prepared.mode}, crop {prepared.crop}"),
        ("network", f"{_count(loaded.model)} parameters"),
        ("classes", shortened(loaded.classes)),
    ]


def _count(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _print(found: Inspection) -> None:
    table = Table(title=f"{found.kind}: {found.folder}", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in found.facts:
        table.add_row(name, text)
    if found.verified is not None:
        table.add_row("verified", str(found.verified))
    if found.figure is not None:
        table.add_row("figure", str(found.figure))
    for note in found.notes:
        table.add_row("note", note)
    Console(markup=False).print(table)
