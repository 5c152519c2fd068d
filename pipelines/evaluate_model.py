"""How good is a stage-one model? `smalti evaluate`: the likelihood of held-out images, its latent and its factors, and
whether samples show their labels or captions.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field

from pipelines.base import distributed
from pipelines.base.atomic_files import sha256_of, write_json, write_text
from pipelines.base.documents import read_json_if_valid, read_json_mapping
from pipelines.base.errors import UserError
from pipelines.base.output_folder import OutputFolder, OutputKind
from pipelines.base.process_store import wait_for_all
from pipelines.base.progress import progress, say
from pipelines.data import DataConfig, ImageDataset, Split
from pipelines.evaluate.caption_check import CaptionCheck, open_caption_check
from pipelines.evaluate.disentanglement import disentanglement, draw_mutual_information, scores_that_are_possible
from pipelines.evaluate.held_out import identity_of, open_held_out
from pipelines.evaluate.image_likelihood import SEED, measure_images, pixels_are_known
from pipelines.evaluate.label_check import LabelCheck, open_label_check
from pipelines.evaluate.latent_health_figure import draw_latent_health
from pipelines.evaluate.latent_window import LatentWindow, latent_window
from pipelines.evaluate.model_report import NAMES, figures_of, is_complete, meaning_of, print_report, write_report
from pipelines.evaluate.prior_bits import open_prior, why_not_measured
from pipelines.evaluate.row_figures import OWNED, RowFigures, as_csv, remove_unfinished
from pipelines.evaluate.value_figure import draw_histograms
from pipelines.models.checkpoint import LoadedPrior, LoadedTokenizer, load_tokenizer
from pipelines.models.image_pipeline_folder import find_tokenizer
from pipelines.tokens.encoding_spec import source_digest
from tokenizer import Autoencoder, OverallHealth
from tokenizer.latent_health import LatentHealth

EVALUATION = OutputKind(
    "an evaluation",
    "smalti evaluate",
    owned=("report.json", "report.md", "images.csv", "*.png", "request.json", OWNED),
)


class EvaluationRequest(BaseModel):
    """The first `max_images` images of a split (None: all). `draws` latents of each bound its likelihood.

    `samples`: output of `smalti sample` from this model, whose images are to show their labels or captions.
    `classifier`: the run of the classifier that tells labels; shapes in colour need none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    split: Split = "test"
    max_images: int | None = Field(default=None, ge=1)
    draws: int = Field(default=5000, ge=1)
    batch_size: int = Field(default=64, ge=1)
    samples: Path | None = None
    classifier: Path | None = None


def evaluate_model(
    folder: str | Path,
    data: DataConfig,
    output: str | Path,
    request: EvaluationRequest | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `images.csv`, a line an image, figures, `report.md`, and last `report.json`, which is returned.

    `folder` is a tokenizer's run or model folder, or an image pipeline, whose prior is measured too. Images are
    prepared as the model was trained. The figures of an image depend on its key and the models alone. A killed
    evaluation continues where it was.

    Raises:
        UserError: no tokenizer there, no image that can be read, samples or a classifier that do not fit, or an
            `output` that holds something else.
    """
    request, output, accelerator = request or EvaluationRequest(), Path(output), distributed.start()
    target = OutputFolder(output, EVALUATION)
    target.check(overwrite)
    tokenizer = load_tokenizer(find_tokenizer(folder), accelerator.device)
    images = open_held_out(tokenizer, data, request.split, accelerator)
    prior = open_prior(folder, tokenizer, accelerator.device)
    check = open_caption_check(request.samples, request.classifier, tokenizer, data, output)
    check = check or open_label_check(request.samples, request.classifier, tokenizer, data, images)
    known = identity_of(tokenizer, source_digest(data, images), request, ("batch_size", "samples", "classifier"))
    identity = {"fingerprint": tokenizer.fingerprint, **known, **({check.name: check.digests} if check else {})}
    if prior is not None:
        identity["prior"] = sha256_of(prior.folder / "config.json")  # which has the hashes of the other files
    if not overwrite and read_json_if_valid(output / "request.json") not in (None, identity):
        raise UserError(
            f"{output}: holds an evaluation of another model, other images, other samples or other options; choose "
            "another --output, or --overwrite"
        )
    report = read_json_if_valid(output / "report.json") if not overwrite else None
    if report is None or report.get("request") != identity or not is_complete(report):
        wait_for_all(accelerator)  # nobody looks at the folder any more
        with target.begin(overwrite, accelerator):
            if accelerator.is_main_process:
                write_json(output / "request.json", identity)
            _evaluate(tokenizer, prior, images, check, request, identity, output, accelerator)
            wait_for_all(accelerator)
        report = read_json_mapping(output / "report.json")
    elif accelerator.is_main_process:
        say(f"{output}: already evaluated; nothing to do")
    if accelerator.is_main_process:
        print_report(report, str(folder))
    return report


def _evaluate(
    tokenizer: LoadedTokenizer,
    prior: LoadedPrior | None,
    images: ImageDataset,
    check: LabelCheck | CaptionCheck | None,
    request: EvaluationRequest,
    identity: dict[str, Any],
    output: Path,
    accelerator: Accelerator,
) -> None:
    """Everything is measured by all processes, and written by the first."""
    model, rows = tokenizer.model, min(len(images), request.max_images or len(images))
    checked = {check.name: asdict(check.measure(request.split, request.max_images, accelerator))} if check else {}
    factors = images.factors(range(1)) is not None
    window = latent_window(model, images, range(rows), request.batch_size, accelerator, keep_means=factors)
    usable = None if why_not_measured(prior, images) else prior
    found = measure_images(model, images, rows, request.draws, request.batch_size, output, accelerator, usable)
    report = {
        "request": identity,
        "split": request.split,
        "images": sum(bool(row.figures) for row in found),
        "dims": model.dims,
        "draws": request.draws if model.is_random else None,
        "likelihood": _likelihood(model, pixels_are_known(model, images)),
        "figures": figures_of(found),
        **_health(window),
        "disentanglement": None,
        "labels": None,
        **checked,
        "notes": _notes(model, found, prior, images),
    }
    if accelerator.is_main_process:
        if factors:
            _add_disentanglement(report, images, window, output)
        _draw(output, found, window)
        write_text(output / "images.csv", as_csv(found, images.classes))
        write_report(output, report, f"Evaluation of {tokenizer.folder.name}")
        remove_unfinished(output)


def _likelihood(model: Autoencoder, exact: bool) -> dict[str, Any]:
    """What kind of number the likelihood is. `exact`: every pixel is one of the values that it knows."""
    return {
        "kind": model.config.likelihood.kind,
        "is_mass": model.likelihood.is_mass,
        "bins": model.likelihood.bins,
        "exact": exact,
        "meaning": meaning_of(model, exact),
    }


def _notes(
    model: Autoencoder, found: Sequence[RowFigures], prior: LoadedPrior | None, images: ImageDataset
) -> list[str]:
    notes = []
    if unreadable := [row.key for row in found if not row.figures]:
        notes.append(f"{len(unreadable):,} images cannot be read and are left out, the first: {unreadable[0]}")
    if model.num_codes is not None and prior is None:
        notes.append("a discrete model has no likelihood of its own: its prior is a second model, see `smalti run`")
    elif model.num_codes is None and not model.is_random:
        notes.append(f"the latent of a {model.config.bottleneck.kind} bottleneck is not random: -ln p(x) has no bound")
    if reason := why_not_measured(prior, images):
        notes.append(f"the prior is not measured: {reason}")
    return notes


def _add_disentanglement(report: dict[str, Any], images: ImageDataset, window: LatentWindow, output: Path) -> None:
    """Scores and their heat map, or a note of why there are none."""
    factors = images.factors(window.rows)
    if factors is None or window.means is None:
        return
    scores, missing = scores_that_are_possible(window.means.shape[1])
    report["notes"] += missing
    try:
        with progress(1, "disentanglement", "report") as meter:
            found = disentanglement(window.means.numpy(), factors.values, factors.names, SEED, scores)
            meter.advance()
    except UserError as error:
        report["notes"].append(str(error))
        return
    draw_mutual_information(output / "mutual_information.png", found)
    report["disentanglement"] = found.as_dict()


def _health(window: LatentWindow) -> dict[str, Any]:
    """The state of a continuous latent, or of a codebook without its counts."""
    content = window.health.as_dict()
    if isinstance(window.health, OverallHealth):
        return {"latent_health": None, "codebook": content}
    return {"latent_health": content, "codebook": None}


def _draw(output: Path, found: Sequence[RowFigures], window: LatentWindow) -> None:
    readable = [row.figures for row in found if row.figures]
    shown = [name for name in ("negative_elbo", "nll", "reconstruction_nll") if name in readable[0]]
    values = {NAMES[name]: [figures[name] for figures in readable] for name in shown}
    draw_histograms(output / "likelihood.png", values, "nats an image", f"{len(readable):,} images")
    if isinstance(window.health, LatentHealth):
        draw_latent_health(output / "latents.png", window.health)
