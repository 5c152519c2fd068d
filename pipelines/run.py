"""The whole chain of a pipeline recipe: `smalti run`. Every stage continues or skips by itself; rerun to resume."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipelines.base import distributed
from pipelines.base.atomic_files import sha256_of, write_json, write_text
from pipelines.base.progress import console
from pipelines.base.recipe_files import dump
from pipelines.base.redaction import redact
from pipelines.data.shapes import ShapesConfig
from pipelines.encode import encode
from pipelines.evaluate.classifier import train_classifier
from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.evaluate.label_accuracy import label_accuracy
from pipelines.evaluate.report import Report, place_picture, print_report, write_report
from pipelines.evaluate.samples import read_samples
from pipelines.evaluate.token_bits import token_bits
from pipelines.models.checkpoint import load_prior, load_tokenizer, resolve_folder
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.recipes.pipeline import PipelineRecipe
from pipelines.reconstruct import ReconstructionRequest, reconstruct
from pipelines.sample import SampleRequest, sample
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.health_figure import draw_health
from pipelines.tokens.statistics import codebook_health, window_of
from pipelines.train import train_recipe
from prior import SamplingOptions


def run(recipe: PipelineRecipe, overwrite: bool = False) -> Report:
    """Train the tokenizer, encode, train the prior, put both together, sample, evaluate, report.

    Returns what `report.json` holds, the last file written. Raises UserError as the stages do.
    """
    root, described = recipe.output, redact(recipe.model_dump(mode="json"))
    accelerator = distributed.start(recipe.tokenizer.training.precision)
    finished = root / "report.json"
    if finished.is_file() and not overwrite:
        report = json.loads(finished.read_text())
        if report["recipe"] == described:
            if accelerator.is_main_process:
                console.print(f"{root}: finished; nothing to do (--overwrite starts over)")
                print_report(report, root.name)
            return report
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finished.unlink(missing_ok=True)
        write_text(root / "recipe.yaml", dump(recipe))
        if overwrite:
            (root / "seconds.json").unlink(missing_ok=True)
    stages = Stages(root, accelerator)
    data = recipe.tokenizer.data

    with stages("tokenizer"):
        train_recipe(recipe.tokenizer, overwrite)
    with stages("encode"):
        options = recipe.encode
        encode(
            root / "tokenizer", data, root / "tokens", options.splits, options.num_shards, options.batch_size, overwrite
        )
    with stages("prior"):
        train_recipe(recipe.prior, overwrite)
    with stages("image pipeline"):
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save_image_pipeline(root, recipe.sample.options)
        accelerator.wait_for_everyone()
    with stages("sample"):
        wanted = recipe.sample
        request = SampleRequest(num_images=wanted.num_images, seed=wanted.seed, batch_size=wanted.batch_size)
        sample(root / "image_pipeline", root / "samples", request, overwrite, replace_others=True)
    with stages("reconstruct"):
        judged = recipe.evaluate
        pairs = ReconstructionRequest(split=judged.split, max_images=judged.max_images, num_pairs=judged.num_pairs)
        reconstruct(root / "tokenizer", data, root / "reconstructions", pairs, overwrite, replace_others=True)
    if needs_classifier(recipe):
        with stages("classifier"):
            chosen = judged.classifier.model_dump()
            chosen["training"] = judged.classifier.training
            plain = data.model_copy(update={"augment": type(data.augment)()})
            train_classifier(ClassifierRecipe(output=root / "classifier", data=plain, **chosen), overwrite)
    report: Report = {}
    if accelerator.is_main_process:
        with stages("evaluate"):
            figures = evaluate(recipe, accelerator)
        report = {"recipe": described, **figures, "seconds": stages.seconds}
        write_report(root, report, f"{root.name}: from pictures to tokens to new pictures")
        print_report(report, root.name)
    accelerator.wait_for_everyone()
    return report or json.loads(finished.read_text())


class Stages:
    """Announces each stage and remembers how long it took: the longest call, since a finished stage only looks."""

    def __init__(self, root: Path, accelerator: Accelerator):
        self.path, self.main = root / "seconds.json", accelerator.is_main_process
        self.seconds: dict[str, float] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.main:
            console.rule(f"[bold]{name}")
        began = time.monotonic()
        yield
        took = round(time.monotonic() - began, 2)
        self.seconds[name] = max(self.seconds.get(name, 0.0), took)
        if self.main:
            write_json(self.path, self.seconds)


def save_image_pipeline(root: Path, options: SamplingOptions) -> None:
    """Put the best tokenizer and prior of a pipeline run together, unless just these stand there already."""
    folder, parts = root / "image_pipeline", ("tokenizer", "prior")
    pipeline = ImageGenerationPipeline(load_tokenizer(root / "tokenizer"), load_prior(root / "prior"), options)
    weights = [(resolve_folder(root / part), folder / part) for part in parts]
    same = all(_same_file(ours, theirs, "model.safetensors") for ours, theirs in weights)
    if not (same and (folder / "model_index.json").is_file() and _options(folder) == options):
        pipeline.save_pretrained(folder, overwrite=True)


def _options(folder: Path) -> SamplingOptions:
    return ImageGenerationPipeline.from_pretrained(folder).generation_config


def _same_file(one: Path, other: Path, name: str) -> bool:
    return (other / name).is_file() and sha256_of(one / name) == sha256_of(other / name)


def needs_classifier(recipe: PipelineRecipe) -> bool:
    return recipe.prior.condition == "label" and not isinstance(recipe.tokenizer.data.source, ShapesConfig)


def evaluate(recipe: PipelineRecipe, accelerator: Accelerator) -> dict[str, Any]:
    """The figures and pictures of finished stages; on one process."""
    root, chosen, data = recipe.output, recipe.evaluate, recipe.tokenizer.data
    dataset = TokenDataset.open(root / "tokens")
    tokenizer = load_tokenizer(root / "tokenizer", accelerator.device)
    window = window_of(dataset.split(chosen.split))
    health = codebook_health(window)
    draw_health(root / "codes.png", window, health, tokenizer.model)
    place_picture(root / "samples" / "samples.png", root / "samples.png")
    place_picture(root / "reconstructions" / "reconstructions.png", root / "reconstructions.png")
    fidelity = json.loads((root / "reconstructions" / "reconstruction.json").read_text())["fidelity"]
    bits = token_bits(root / "prior", root / "tokens", chosen.split, chosen.max_images, device=accelerator.device)
    labels = None
    if recipe.prior.condition == "label":
        samples = read_samples(root / "samples")
        judge = root / "classifier" if needs_classifier(recipe) else None
        classes = samples.classes or []
        labels = asdict(
            label_accuracy(samples.images, samples.labels, classes, data, judge, chosen.split, chosen.max_images)
        )
    return {
        "reconstruction": {name: fidelity[name] for name in ("images", "psnr", "ssim")},
        "codes": {
            "size": health.counts.numel(),
            "used": int((health.counts > 0).sum()),
            "perplexity": float(health.perplexity),
            "verdict": health.verdict,
        },
        "bits_per_token": asdict(bits),
        "labels": labels,
    }
