"""A part of an image drawn anew, the rest kept: `smalti complete`."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipelines.base import distributed
from pipelines.base.atomic_files import sha256_of, write_json
from pipelines.base.documents import read_json_if_valid
from pipelines.base.errors import UserError
from pipelines.base.first_process import first_process
from pipelines.base.image_grids import save_images
from pipelines.base.output_folder import OutputFolder, OutputKind
from pipelines.base.process_store import wait_for_all
from pipelines.base.progress import progress, say
from pipelines.data import DataConfig, Preprocess, Split
from pipelines.evaluate.chosen_images import ChosenImages, choose_images
from pipelines.evaluate.completion_figure import draw_completions_figure, kept_in_words, kept_tokens
from pipelines.evaluate.held_out import open_held_out
from pipelines.evaluate.samples import read_note
from pipelines.models.completion import draw_completions, for_each_image, with_original_pixels
from pipelines.models.conditions import ImageCondition
from pipelines.models.hub import local_folder
from pipelines.models.image_masks import read_mask, rectangle_mask
from pipelines.models.image_pipeline_folder import find_image_pipeline
from pipelines.models.image_samplers import TokenSampler
from pipelines.models.image_seeds import image_seeds
from pipelines.models.labels import Label
from pipelines.models.masked_images import MaskedImages, mask_images

COMPLETIONS = OutputKind(
    "completions",
    "smalti complete",
    owned=("completions.json", "images/*.png", "completions.png", "request.json"),
)


class CompletionRequest(BaseModel):
    """`num_completions` of each of `images`, which are rows of `split` or paths of files.

    Redrawn are the pixels in any of the rectangles `redraw` (see `rectangle_mask`), the white ones of the file `mask`,
    and those up to `margin` pixels around them. `prompts` or `labels`: one for all images or one for each; neither:
    their own, where the prior takes them and all images have one. `options` are those of `prior.SamplingOptions` that
    differ from the image pipeline's own. For `num_candidates` and `paste_original` see `complete_images`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    images: tuple[str, ...] = Field(min_length=1, max_length=4096)
    split: Split = "test"
    redraw: tuple[str, ...] = ()
    mask: Path | None = None
    margin: int = Field(default=0, ge=0, le=2**14)
    prompts: tuple[str, ...] | None = None
    labels: tuple[Label, ...] | None = None
    num_completions: int = Field(default=4, ge=1, le=4096)
    num_candidates: int = Field(default=1, ge=1, le=2**16)
    paste_original: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)
    batch_size: int = Field(default=64, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is to be drawn: completion c is of image c % n, so that a larger number of them adds to those there."""

    masked: MaskedImages
    conditions: Sequence[ImageCondition]  # of each image
    names: Sequence[str]  # of each completion's file
    seeds: Sequence[int]
    identity: dict[str, Any]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def image(self, completion: int) -> int:
        return completion % len(self.conditions)


def complete(
    folder: str | Path,
    data: DataConfig | None,
    output: str | Path,
    request: CompletionRequest,
    overwrite: bool = False,
) -> Path:
    """Write each completion into `output/images/`, the figure `completions.png`, and last `completions.json`.

    The last one says what was kept, and whether the draws are exact.

    A completion depends on its image, the mask, its prompt or label, the seed and its number alone. Rerunning
    continues, a larger number adds. `folder` is what `ImageGenerationPipeline.from_pretrained` takes. `data` is None
    where no image is a row.

    Raises:
        UserError: no image pipeline or image there; a mask, prompt or label that does not fit; impossible options; an
            `output` that holds something else.
    """
    output, accelerator = Path(output), distributed.start()
    target = OutputFolder(output, COMPLETIONS)
    target.check(overwrite)
    with first_process(accelerator):  # downloads once
        folder = find_image_pipeline(local_folder(folder))
    sampler = TokenSampler(folder, accelerator.device, request.options)
    plan = make_plan(sampler, data, request, accelerator)
    if not overwrite and _is_finished(output, plan):
        if accelerator.is_main_process:
            say(f"{output}: already completed, {len(plan.names):,} images; nothing to do")
        return output
    wait_for_all(accelerator)  # nobody looks at the folder any more
    with target.begin(overwrite, accelerator):
        if accelerator.is_main_process:
            (output / "completions.json").unlink(missing_ok=True)
            write_json(output / "request.json", plan.identity)
        notes = distributed.gather(_draw(sampler, plan, request, output, accelerator), accelerator)
        if accelerator.is_main_process:
            _finish(output, sampler, plan, request, {note["index"]: note for note in notes})
        wait_for_all(accelerator)
    return output


def make_plan(
    sampler: TokenSampler, data: DataConfig | None, request: CompletionRequest, accelerator: Accelerator
) -> Plan:
    """What is to be drawn. UserError for images, masks, labels and options that do not fit."""
    pipeline = sampler.pipeline

    def rows():
        assert data is not None  # a row was named
        images = open_held_out(pipeline.tokenizer, data, request.split, accelerator)
        if not request.labels and pipeline.classes and images.classes and tuple(images.classes) != pipeline.classes:
            raise UserError("data: its classes are not those that the prior was trained on; expected --label")
        return images

    mask = _mask(request, pipeline.tokenizer.preprocess)
    chosen = choose_images(request.images, pipeline.tokenizer.preprocess, rows)
    conditions = _conditions(sampler, chosen, request)
    options = sampler.options(not conditions[0].is_null)
    if request.num_candidates > 1 and options.get("do_sample") is False:
        raise UserError(f"--candidates: found {request.num_candidates}, expected 1: under --greedy all are the same")
    count = len(request.images) * request.num_completions
    names = [f"images/{c % len(conditions):05d}_{c // len(conditions) + 1}.png" for c in range(count)]
    identity = {
        "weights": {part: sha256_of(path) for part, path in sampler.weights.items()},
        "images": chosen.digest(),
        "mask": hashlib.sha256(mask.numpy().tobytes()).hexdigest(),
        **request.model_dump(include={"margin", "num_candidates", "paste_original", "seed"}),
        "conditions": [asdict(each) for each in conditions],
        "options": options,
    }
    masked = mask_images(pipeline, chosen.image, mask, request.margin)
    return Plan(masked, conditions, names, image_seeds(request.seed, count), identity)


def _mask(request: CompletionRequest, preprocess: Preprocess) -> Bool[Tensor, "h w"]:
    if not request.redraw and request.mask is None:
        raise UserError("--redraw, --mask: found neither, expected at least one: they say what is redrawn")
    mask = rectangle_mask(request.redraw, preprocess.size)
    if request.mask is not None:
        mask |= read_mask(request.mask, preprocess)
    if not mask.any():
        raise UserError(f"--mask: {request.mask}: marks no pixel, expected white where images are to be redrawn")
    return mask


def _conditions(sampler: TokenSampler, chosen: ChosenImages, request: CompletionRequest) -> list[ImageCondition]:
    """Of each image."""
    prompts, labels, count = request.prompts, request.labels, len(request.images)
    if prompts is None and labels is None:
        own = [text for text in chosen.text if text is not None]
        if sampler.pipeline.takes_captions and len(own) == count:
            prompts = own
        elif sampler.pipeline.num_classes is not None and (chosen.label >= 0).all():
            labels = chosen.label.tolist()
    name = "--label" if request.prompts is None else "--prompt"
    return for_each_image(sampler.pipeline.conditions(prompts, labels), count, name)


def _draw(
    sampler: TokenSampler, plan: Plan, request: CompletionRequest, output: Path, accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Draw this process's completions that are not there yet; returns the notes of all of this process's."""
    mine = range(accelerator.process_index, len(plan.names), accelerator.num_processes)
    notes = {index: read_note(output / plan.names[index]) for index in mine}
    pending = [index for index, note in notes.items() if note.get("request") != plan.digest]
    candidates, kept_codes = 1 if plan.masked.exact else request.num_candidates, plan.masked.kept_codes
    at_once, total = max(1, request.batch_size // candidates), len(pending) * candidates * kept_codes.shape[1]
    with progress(total, "complete", "token", visible=accelerator.is_main_process) as meter:
        for start in range(0, len(pending), at_once):
            part = pending[start : start + at_once]
            images, figures = _drawn(sampler, plan, request, part, meter.advance)
            found = [
                {"index": index, "seed": plan.seeds[index], **each} for index, each in zip(part, figures, strict=True)
            ]
            notes |= {note["index"]: note | {"request": plan.digest} for note in found}
            texts = [{"smalti": json.dumps(notes[index])} for index in part]
            save_images([output / plan.names[index] for index in part], images, texts)
    return list(notes.values())


def _drawn(
    sampler: TokenSampler, plan: Plan, request: CompletionRequest, part: list[int], advance: Callable[[int], object]
) -> tuple[Tensor, list[dict[str, float]]]:
    """Some completions, and the figures of each."""
    rows = [plan.image(index) for index in part]
    drawn = draw_completions(
        sampler.pipeline,
        plan.masked.kept_codes[rows],
        [plan.conditions[row] for row in rows],
        [plan.seeds[index] for index in part],
        sampler.pipeline.options(not plan.conditions[0].is_null, **sampler.given),
        request.num_candidates,
        request.batch_size,
        advance,
    )
    images = sampler.pipeline.decode(drawn.codes)
    if request.paste_original:
        images = with_original_pixels(images, plan.masked, torch.tensor(rows))
    figures = zip(drawn.logprobs.double().sum(1).tolist(), drawn.effective_candidates.tolist(), strict=True)
    return images, [
        {"logprob": round(logprob, 3), "effective_candidates": round(effective, 2)} for logprob, effective in figures
    ]


def _finish(
    output: Path, sampler: TokenSampler, plan: Plan, request: CompletionRequest, notes: dict[int, dict[str, Any]]
) -> None:
    """The figure, then completions.json, whose presence means that every completion is there."""
    pipeline, kept = sampler.pipeline, kept_tokens(plan.masked, sampler.pipeline.prior.spec.code_grids)
    titles = [condition.title(pipeline.classes) for condition in plan.conditions]
    draw_completions_figure(output, pipeline, plan.masked, plan.names, titles)
    entries = []
    for index, name in enumerate(plan.names):
        row = plan.image(index)
        figures = {key: notes[index][key] for key in ("seed", "logprob", "effective_candidates")}
        entries.append({"file": name, "image": request.images[row], **asdict(plan.conditions[row]), **figures})
    write_json(output / "completions.json", {"request": plan.identity, "kept": kept, "images": entries})
    say(f"{output}: {len(plan.names):,} completions; {kept_in_words(kept, request.num_candidates)}")


def _is_finished(output: Path, plan: Plan) -> bool:
    """Whether all wanted completions are there.

    Raises:
        UserError: the folder holds those of another request.
    """
    written = read_json_if_valid(output / "request.json")
    if written is None:
        return False
    if differing := [key for key, value in plan.identity.items() if written.get(key) != value]:
        raise UserError(
            f"{output}: holds other completions (of other {', '.join(differing)}); choose another --output, or "
            "--overwrite"
        )
    done = read_json_if_valid(output / "completions.json") or {}
    listed = [entry.get("file") for entry in done.get("images", ()) if isinstance(entry, dict)]
    wanted = list(plan.names)
    return listed[: len(wanted)] == wanted and all((output / name).is_file() for name in wanted)
