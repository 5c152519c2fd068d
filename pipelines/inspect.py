"""What is in this folder? `smalti inspect`: facts, the codebook's health, and a check against the original images."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pipelines.base.documents import read_yaml
from pipelines.base.errors import UserError
from pipelines.base.progress import progress
from pipelines.base.recipe_files import validate
from pipelines.data import DataConfig, Split, open_images
from pipelines.models.checkpoint import LoadedPrior, LoadedTokenizer, load_prior, load_tokenizer, resolve_folder
from pipelines.models.token_spec import narrowest
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.health_figure import draw_health
from pipelines.tokens.shard_encoder import encode_pass
from pipelines.tokens.statistics import TokenWindow, codebook_health, window_of
from pipelines.tokens.verify import Verified, verify
from pipelines.training.metrics_log import read_metrics
from tokenizer import Autoencoder
from tokenizer.codebook_health import CodebookHealth

Facts = list[tuple[str, str]]
EXPECTED = "a tokenizer, prior, image pipeline or run folder, or a token dataset"


@dataclass
class Inspection:
    """What was found: `facts` in order, and the codebook's `health` with its `picture` where tokens could be seen."""

    kind: str
    folder: Path
    facts: Facts
    health: CodebookHealth | None = None
    picture: Path | None = None
    verified: Verified | None = None
    notes: list[str] = field(default_factory=list)


def inspect(
    folder: str | Path, verify_rows: int | None = None, split: str | None = None, picture: Path | None = None
) -> Inspection:
    """Look into a tokenizer, prior, image pipeline or run folder, or a token dataset, and print a table.

    Codebook health needs tokens: those of `split` of a token dataset (default: its first), or the validation split of
    the data that a tokenizer's run was trained on. `verify_rows` encodes so many random rows of a token dataset again.
    `picture` is where the health picture goes (default: health.png in the folder).

    Raises:
        UserError: none of these folders, or a damaged one.
    """
    folder = Path(folder)
    found = _look(folder, verify_rows, split, picture or folder / "health.png")
    _print(found)
    return found


def _look(folder: Path, verify_rows: int | None, split: str | None, picture: Path) -> Inspection:
    if (folder / "token_spec.json").is_file():
        return inspect_tokens(folder, verify_rows, split, picture)
    if verify_rows is not None:
        raise UserError(f"{folder}: is not a token dataset (no token_spec.json), which --verify needs")
    if (folder / "model_index.json").is_file():
        return inspect_image_pipeline(folder)
    if (folder / "recipe.yaml").is_file():
        return inspect_run(folder, picture)
    if (folder / "config.json").is_file():
        return inspect_model(folder)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; expected {EXPECTED}")
    marks = ("config.json", "token_spec.json", "model_index.json", "recipe.yaml")
    inside = sorted({mark.parent.name for name in marks for mark in folder.glob(f"*/{name}")})
    hint = f"; it holds {', '.join(f'{name}/' for name in inside)}: inspect one of these" if inside else ""
    raise UserError(f"{folder}: expected {EXPECTED}{hint}")


def inspect_tokens(folder: Path, verify_rows: int | None, split: str | None, picture: Path) -> Inspection:
    dataset = TokenDataset.open(folder)
    spec = dataset.spec
    facts = [
        ("images", f"{spec.preprocess.size} x {spec.preprocess.size} {spec.preprocess.mode}"),
        (
            "codes",
            f"{spec.codebook_size}, grid {_grid(spec.grid)}, {spec.tokens_per_image} tokens an image, {spec.dtype}",
        ),
        ("classes", _shortened(spec.classes)),
        ("tokenizer", f"{spec.tokenizer.kind}, fingerprint {spec.tokenizer.fingerprint[:12]}…"),
        ("source", json.dumps(spec.source.data.get("source", spec.source.data))),
        ("computed", f"{spec.compute.dtype}, torch {spec.compute.torch}, {spec.compute.device}"),
        ("digest", f"{dataset.manifest.digest[:12]}…"),
    ]
    for name, entry in dataset.manifest.splits.items():
        size = sum(shard.bytes for shard in entry.shards)
        text = f"{entry.rows:,} rows in {len(entry.shards)} files, {size / max(entry.rows, 1):.0f} bytes a row"
        if entry.skipped:
            text += (
                f"; {len(entry.skipped)} unreadable images left out: {_shortened(tuple(s.key for s in entry.skipped))}"
            )
        if entry.stats is not None:
            text += (
                f"\n{entry.stats.codes_used} codes used, perplexity {entry.stats.perplexity:.1f}, "
                f"{entry.stats.unigram_bits:.3f} unigram bits a token, reconstruction {entry.stats.psnr_db:.2f} dB "
                f"(PSNR over {entry.stats.psnr_images} images)"
            )
        facts.append((name, text))
    tokenizer = load_tokenizer(dataset.tokenizer_folder)
    spec.check_tokenizer(tokenizer.fingerprint, str(tokenizer.folder), str(folder))
    window = window_of(dataset.split(split or dataset.splits[0]))
    found = Inspection("token dataset", folder, facts)
    _judge(found, window, tokenizer.model, picture)
    if verify_rows is not None:
        found.verified = verify(dataset, verify_rows, split)
    return found


def inspect_model(folder: Path) -> Inspection:
    match _format(folder):
        case "smalti-tokenizer/1":
            found = Inspection("tokenizer", folder, _tokenizer_facts(load_tokenizer(folder)))
            found.notes.append("codebook health needs tokens: inspect its run, or a token dataset that it wrote")
            return found
        case "smalti-prior/1":
            return Inspection("prior", folder, _prior_facts(load_prior(folder)))
        case other:
            raise UserError(f"{folder / 'config.json'}: found format {other!r}, expected {EXPECTED}")


def inspect_image_pipeline(folder: Path) -> Inspection:
    tokenizer, prior = load_tokenizer(folder / "tokenizer"), load_prior(folder / "prior")
    prior.spec.check_tokenizer(tokenizer.fingerprint, str(folder / "tokenizer"), f"the tokens of {folder / 'prior'}")
    facts = [(f"tokenizer: {name}", text) for name, text in _tokenizer_facts(tokenizer)]
    return Inspection(
        "image pipeline", folder, facts + [(f"prior: {name}", text) for name, text in _prior_facts(prior)]
    )


def inspect_run(folder: Path, picture: Path) -> Inspection:
    """A run: how far it is, its last figures, its best model; a discrete tokenizer's health on its validation split."""
    recipe = read_yaml(folder / "recipe.yaml")
    lines = read_metrics(folder / "metrics.jsonl")
    steps = (recipe.get("training") or {}).get("steps")
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
    found = Inspection(f"run of a {recipe.get('kind')}", folder, facts)
    try:
        model_folder = resolve_folder(folder)
    except UserError:
        found.notes.append("no model was saved yet")
        return found
    found.facts.append(("model", model_folder.name))
    found.facts += inspect_model(model_folder).facts
    tokenizer = load_tokenizer(model_folder) if recipe.get("kind") == "tokenizer" else None
    if tokenizer is not None and tokenizer.model.num_codes is not None:
        data = validate(DataConfig, recipe.get("data"), folder / "recipe.yaml")
        _judge(found, encoded_window(tokenizer, data), tokenizer.model, picture)
    return found


@torch.inference_mode()
def encoded_window(
    tokenizer: LoadedTokenizer, data: DataConfig, split: Split = "validation", batch: int = 64
) -> TokenWindow:
    """The tokens of a whole split, encoded here and now."""
    model = tokenizer.model
    images = open_images(data.model_copy(update={"on_unreadable": "skip"}), split)
    parts: list[Tensor] = []
    with progress(len(images), f"encode {split}", unit="image") as meter:
        for start in range(0, len(images), batch):
            rows = torch.arange(start, min(start + batch, len(images)))
            read = images.read_batch(rows).image
            parts += [encode_pass(model, read)] if len(read) else []
            meter.advance(len(rows))
    if not parts:
        raise UserError(f"data: split {split!r} has no readable image; expected some to judge the codebook by")
    assert model.num_codes is not None
    tokens = torch.cat(parts).cpu().numpy().astype(narrowest(model.num_codes))
    return TokenWindow(split, tokens, model.grid, model.num_codes)


def _judge(found: Inspection, window: TokenWindow, model: Autoencoder, picture: Path) -> None:
    if not len(window.tokens):
        found.notes.append(f"split {window.name!r} has no rows, so nothing can be said about the codebook")
        return
    found.health = codebook_health(window, model.bottleneck.embedding)
    found.picture = draw_health(picture, window, found.health, model)
    health = found.health
    seen = f"{health.usage:.1%} used over {window.tokens.size:,} tokens of {window.name}"
    found.facts.append(("codebook", f"{seen}, perplexity {health.perplexity:.1f}\n{health.verdict}: {health.reason}"))


def _tokenizer_facts(loaded: LoadedTokenizer) -> Facts:
    model, config = loaded.model, loaded.model.config
    height, width, depth = model.grid
    facts = [
        (
            "images",
            f"{config.image_size} x {config.image_size} {loaded.preprocess.mode}, crop {loaded.preprocess.crop}",
        ),
        ("encoder", f"{config.backbone.kind}, {_count(model.encoder)} parameters; decoder {_count(model.decoder)}"),
        ("likelihood", config.likelihood.kind),
        ("fingerprint", f"{loaded.fingerprint[:12]}…"),
    ]
    if model.num_codes is None:
        latent = f"{config.bottleneck.kind}: continuous, {height} x {width} x {model.bottleneck.dim}"
    else:
        bits = height * width * depth * (model.num_codes - 1).bit_length()
        raw = config.image_size**2 * config.channels * 8
        latent = (
            f"{config.bottleneck.kind}: {model.num_codes} codes, grid {_grid(model.grid)}: "
            f"{bits:,} bits an image, {raw / max(bits, 1):.0f} times fewer than its pixels"
        )
    return [facts[0], ("bottleneck", latent), *facts[1:]]


def _prior_facts(loaded: LoadedPrior) -> Facts:
    spec = loaded.spec
    return [
        ("network", f"{_count(loaded.model)} parameters"),
        ("tokens", f"{spec.tokens_per_image} of {spec.codebook_size} codes, grid {_grid(spec.grid)}"),
        ("classes", _shortened(loaded.classes)),
        ("tokenizer", f"{spec.tokenizer.kind}, fingerprint {spec.tokenizer.fingerprint[:12]}…"),
    ]


def _format(folder: Path) -> Any:
    try:
        return json.loads((folder / "config.json").read_text()).get("format")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'}: cannot be read as JSON ({error})") from error


def _count(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _grid(grid: tuple[int, int, int]) -> str:
    return " x ".join(map(str, grid))


def _shortened(names: tuple[str, ...] | None, most: int = 10) -> str:
    if names is None:
        return "none"
    return f"{len(names)}: {', '.join(names[:most])}{' …' if len(names) > most else ''}"


def _print(found: Inspection) -> None:
    table = Table(title=f"{found.kind}: {found.folder}", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in found.facts:
        table.add_row(name, text)
    if found.verified is not None:
        table.add_row("verified", str(found.verified))
    if found.picture is not None:
        table.add_row("picture", str(found.picture))
    for note in found.notes:
        table.add_row("note", note)
    Console(markup=False).print(table)
