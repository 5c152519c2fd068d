"""New images: `smalti sample`. One PNG per image that knows its own seed; killed runs continue."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field

from pipelines.base import distributed
from pipelines.base.atomic_files import sha256_of, write_json
from pipelines.base.documents import read_json_if_valid
from pipelines.base.errors import UserError
from pipelines.base.first_process import first_process
from pipelines.base.image_grids import save_images
from pipelines.base.output_folder import OutputFolder, OutputKind
from pipelines.base.process_store import wait_for_all
from pipelines.base.progress import progress, say
from pipelines.evaluate.samples import draw_samples, image_name, read_note
from pipelines.models.candidate_options import CandidateOptions
from pipelines.models.conditions import ImageCondition
from pipelines.models.hub import local_folder
from pipelines.models.image_samplers import Drawn, ImageSampler, open_sampler
from pipelines.models.image_seeds import seeds_at
from pipelines.models.labels import Label

SAMPLES = OutputKind("samples", "smalti sample", owned=("samples.json", "images/*.png", "samples.png", "request.json"))


LARGEST_DRAW = 2**31  # images: beyond 2^32 seeds would repeat


class SampleRequest(BaseModel):
    """`num_images` images of `prompts` or of `labels` in turn (neither: of every class, if the model has classes; None:
    64, or with `candidates` those that are kept of each prompt or label).

    `options` are those of `prior.SamplingOptions` that differ from the image pipeline's own; a continuous tokenizer
    takes `temperature` alone. `batch_size` bounds memory and changes no image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    prompts: tuple[str, ...] | None = None
    labels: tuple[Label, ...] | None = None
    num_images: int | None = Field(default=None, ge=1, le=10_000_000)
    candidates: CandidateOptions | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    batch_size: int = Field(default=64, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Draw:
    """Images of one prompt or label that are chosen among the same candidates, both by their numbers.

    Candidates have the numbers that they would have if all were images: the same seeds, and the same pictures.
    """

    condition: ImageCondition
    images: Sequence[int]
    candidates: range


@dataclass(frozen=True)
class Plan:
    """Every image of a request: its prompt or label and the name of its file; and what all of them depend on.

    Of every `num_candidates` images of a prompt or label `keep` are kept.
    """

    conditions: Sequence[ImageCondition]  # image i has conditions[i % len(conditions)]
    names: Sequence[str]
    identity: dict[str, Any]
    num_candidates: int = 1
    keep: int = 1

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def condition(self, index: int) -> ImageCondition:
        return self.conditions[index % len(self.conditions)]

    def draws(self) -> list[Draw]:
        """All images, by what is drawn and chosen together."""
        draws, cycle = [], len(self.conditions)
        for turn, start in enumerate(range(0, len(self.names), self.keep * cycle)):
            for place, condition in enumerate(self.conditions[: len(self.names) - start]):
                first = turn * self.num_candidates * cycle + place
                candidates = range(first, first + self.num_candidates * cycle, cycle)
                images = range(start + place, len(self.names), cycle)[: self.keep]
                draws.append(Draw(condition, images, candidates))
        return draws


def sample(
    folder: str | Path,
    output: str | Path,
    request: SampleRequest | None = None,
    overwrite: bool = False,
    replace_others: bool = False,
) -> Path:
    """Write the images into `output/images/`, the overview `samples.png`, and last `samples.json`.

    Image i depends on its prompt or label, the seed and i: neither on their number, nor on the batch size or the number
    of processes. Rerunning continues, a larger number adds, a smaller one finds its images there and deletes none.
    `folder` is what `ImageGenerationPipeline.from_pretrained` takes, or the run or model folder of a continuous
    tokenizer, which draws from its latent prior. With candidates, image i is one of the best of as many images as this
    command draws without them. `replace_others`: samples of another request make
    room, where they would be refused otherwise, and so do images beyond `num_images`.

    Raises:
        UserError: as `open_sampler`; or `output` holds something else and `overwrite` is off.
    """
    request, output, accelerator = request or SampleRequest(), Path(output), distributed.start()
    target = OutputFolder(output, SAMPLES)
    target.check(overwrite)
    with first_process(accelerator):  # downloads once
        folder = local_folder(folder)
    sampler = open_sampler(folder, accelerator.device, request.options, request.candidates)
    plan = make_plan(sampler, request)
    others = _others(output, plan)
    if others and not (overwrite or replace_others):
        raise UserError(f"{output}: holds other samples ({others}); choose another --output, or --overwrite")
    there = 0 if overwrite or others else _num_finished(output, plan)
    wanted = len(plan.names)
    if there == wanted or (there > wanted and not replace_others):
        if accelerator.is_main_process:
            more = f"; the first {wanted:,} are those asked for" if there > wanted else ""
            say(f"{output}: already sampled, {there:,} images{more}; nothing to do")
        return output
    wait_for_all(accelerator)  # nobody looks at the folder any more
    with target.begin(overwrite or others is not None, accelerator):
        if accelerator.is_main_process:
            (output / "samples.json").unlink(missing_ok=True)
            write_json(output / "request.json", plan.identity)
        notes = distributed.gather(_draw(sampler, plan, request, output, accelerator), accelerator)
        if accelerator.is_main_process:
            if replace_others:
                _remove_all_but(output, plan.names)
            _complete(output, plan, {note["index"]: note for note in notes}, sampler.classes)
        wait_for_all(accelerator)
    return output


def make_plan(sampler: ImageSampler, request: SampleRequest) -> Plan:
    """What is to be drawn. UserError for prompts, labels and options that the sampler does not take."""
    conditions, chosen = sampler.conditions(request.prompts, request.labels), request.candidates
    titles = [each.title(sampler.classes) for each in conditions]
    number = request.num_images or (chosen.keep * len(conditions) if chosen else 64)
    if chosen and number / chosen.keep * chosen.num_candidates > LARGEST_DRAW:
        raise UserError(f"num_candidates: found {chosen.num_candidates:,} for {number:,} images; expected fewer")
    identity = {
        "weights": {part: sha256_of(path) for part, path in sampler.weights.items()},
        "options": sampler.options(not conditions[0].is_null),
        "labels": [each.label for each in conditions],
        "seed": request.seed,
    }
    if request.prompts is not None:
        identity |= {"labels": None, "prompts": list(request.prompts)}
    if chosen is not None:
        identity["candidates"] = sampler.candidates(not conditions[0].is_null)
    names = [image_name(i, titles[i % len(titles)]) for i in range(number)]
    return Plan(conditions, names, identity, *((chosen.num_candidates, chosen.keep) if chosen else (1, 1)))


def _draw(
    sampler: ImageSampler, plan: Plan, request: SampleRequest, output: Path, accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Draw this process's images that are not there yet; returns the notes of all of this process's images."""
    mine = plan.draws()[accelerator.process_index :: accelerator.num_processes]
    notes = {index: read_note(output / plan.names[index]) for draw in mine for index in draw.images}
    pending = [draw for draw in mine if any(notes[index].get("request") != plan.digest for index in draw.images)]
    at_once, (unit, units) = max(1, request.batch_size // plan.num_candidates), sampler.units
    total = len(pending) * plan.num_candidates * units
    with progress(total, "sample", unit, visible=accelerator.is_main_process) as meter:
        for start in range(0, len(pending), at_once):
            part = pending[start : start + at_once]
            seeds = seeds_at(request.seed, [number for draw in part for number in draw.candidates])
            drawn = sampler.draw([draw.condition for draw in part], seeds, request.batch_size, meter.advance)
            rows = {
                index: i * plan.keep + rank for i, draw in enumerate(part) for rank, index in enumerate(draw.images)
            }
            notes |= {index: _note(plan, index, drawn, row) for index, row in rows.items()}
            texts = [{"smalti": json.dumps(notes[index])} for index in rows]
            save_images([output / plan.names[index] for index in rows], drawn.images[list(rows.values())], texts)
    return list(notes.values())


def _note(plan: Plan, index: int, drawn: Drawn, row: int) -> dict[str, Any]:
    """What the file of an image says of it."""
    note = {"index": index, **asdict(plan.condition(index)), "seed": drawn.seeds[row]}
    note["logprob"] = round(drawn.logprobs[row].item(), 3)
    if drawn.scores is not None:
        note["score"] = round(drawn.scores[row].item(), 3)
    return note | {"request": plan.digest}


def _complete(output: Path, plan: Plan, notes: dict[int, dict[str, Any]], classes: Sequence[str] | None) -> None:
    """The overview, then samples.json, whose presence means that every image is there."""
    entries = []
    for index, name in enumerate(plan.names):
        known = plan.condition(index)
        drawn = {key: notes[index][key] for key in ("index", "seed", "logprob", "score") if key in notes[index]}
        label_name = known.title(classes) if classes and known.label is not None else None
        entries.append({"file": name, **drawn, **asdict(known), "label_name": label_name})
    titles = [plan.condition(index).title(classes) for index in range(len(entries))]
    draw_samples(output / "samples.png", [output / name for name in plan.names], titles, len(plan.conditions))
    content = {"request": plan.identity, "classes": list(classes) if classes else None, "images": entries}
    write_json(output / "samples.json", content)


def _others(output: Path, plan: Plan) -> str | None:
    """How the samples that lie in the folder differ from the wanted ones; None where they do not, or there are none."""
    written = read_json_if_valid(output / "request.json")
    if written is None:
        return None
    differing = [
        f"{key}: there {_short(written.get(key))}, asked {_short(plan.identity.get(key))}"
        for key in plan.identity | written
        if written.get(key) != plan.identity.get(key)
    ]
    return "; ".join(differing) or None


def _num_finished(output: Path, plan: Plan) -> int:
    """How many images of this request samples.json lists, if the wanted ones are among them and there; else 0."""
    done = read_json_if_valid(output / "samples.json") or {}
    entries = done.get("images")
    if done.get("request") != plan.identity or not isinstance(entries, list):
        return 0
    wanted, listed = list(plan.names), [entry.get("file") for entry in entries if isinstance(entry, dict)]
    complete = listed[: len(wanted)] == wanted and all((output / name).is_file() for name in wanted)
    return len(listed) if complete else 0


def _remove_all_but(output: Path, names: Sequence[str]) -> None:
    """Delete the images that an earlier request, for more of them, has left."""
    wanted = {output / name for name in names}
    for path in set((output / "images").glob("*.png")) - wanted:
        path.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
