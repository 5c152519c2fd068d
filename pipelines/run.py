"""The whole chain of a pipeline recipe: `smalti run`. Rerunning continues, and redoes only what has changed since."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipelines.base import distributed
from pipelines.base.atomic_files import sha256_of, write_text
from pipelines.base.documents import read_json_if_valid, read_json_mapping
from pipelines.base.errors import UserError
from pipelines.base.first_process import first_process
from pipelines.base.output_folder import OutputFolder, OutputKind
from pipelines.base.process_store import wait_for_all
from pipelines.base.progress import say
from pipelines.base.recipe_files import dump
from pipelines.base.redaction import redact
from pipelines.base.stage_timer import StageTimer
from pipelines.data import RESOURCES, open_images
from pipelines.encode import encode
from pipelines.evaluate.caption_accuracy import checks_captions
from pipelines.evaluate.caption_check import FIGURE, CaptionCheck
from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.evaluate.code_usage import code_usage
from pipelines.evaluate.label_accuracy import label_accuracy
from pipelines.evaluate.overview_figure import draw_overview
from pipelines.evaluate.overview_rows import overview_rows
from pipelines.evaluate.prompt_figure import PROMPTS, report_prompts
from pipelines.evaluate.report import (
    CHOSEN,
    FIGURES,
    Report,
    figures_of,
    is_complete,
    place_figure,
    print_report,
    write_report,
)
from pipelines.evaluate.samples import Samples, read_samples
from pipelines.evaluate.token_bits import token_bits
from pipelines.models.candidate_options import CandidateOptions
from pipelines.models.captions import CAPTIONS
from pipelines.models.checkpoint import load_prior, load_tokenizer, resolve_folder
from pipelines.models.conditions import ImageCondition
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.models.image_pipeline_folder import IMAGE_PIPELINE, PARTS, read_generation_config
from pipelines.recipes.pipeline import PipelineRecipe
from pipelines.recipes.pipeline_checks import check_models_and_data, check_numbers, classifier_recipe
from pipelines.reconstruct import RECONSTRUCTIONS, ReconstructionRequest, reconstruct
from pipelines.sample import SAMPLES, SampleRequest, sample
from pipelines.tokens.captions import distinct_captions
from pipelines.tokens.dataset import TokenDataset
from pipelines.tokens.folder import TOKEN_DATASET
from pipelines.train import train_recipe
from pipelines.training.config import BOOKKEEPING
from pipelines.training.image_digests import image_digests
from pipelines.training.run_folder import RUN, RunFolder

# The folders of the stages, the last stage first: what is left when they are deleted in this order fits together.
PARTS_OF_PIPELINE = {
    "reconstructions": RECONSTRUCTIONS,
    "chosen": SAMPLES,
    "samples": SAMPLES,
    "image_pipeline": IMAGE_PIPELINE,
    "classifier": RUN,
    "prior": RUN,
    "tokens": TOKEN_DATASET,
    "tokenizer": RUN,
}
PIPELINE = OutputKind(
    "a pipeline",
    "smalti run",
    owned=("report.json", "report.md", "seconds.json", "recipe.yaml", *FIGURES),
    key="output",
    parts=tuple(PARTS_OF_PIPELINE),
)
OVERVIEW_ROWS = 3

# Each is written last by its stage, and changes when the stage is redone: by their digests a report knows its sources.
SOURCES = (
    "tokenizer/done.json",
    "tokens/manifest.json",
    "prior/done.json",
    "classifier/done.json",
    "image_pipeline/model_index.json",
    "image_pipeline/generation_config.json",
    "samples/samples.json",
    "chosen/samples.json",
    "reconstructions/reconstruction.json",
)


def run(recipe: PipelineRecipe, overwrite: bool = False) -> Report:
    """Train the tokenizer, encode, train the prior, put both together, sample, evaluate, report.

    Every stage skips or continues by itself. `overwrite` deletes the outputs of all stages before the first one runs,
    so that the same command without it continues. What a changed recipe makes stale is redone where it costs minutes:
    samples, reconstructions, the classifier and figures. Another tokenizer or prior is refused, and nothing is changed.

    Returns what `report.json` holds, the last file written. Raises UserError as the stages do.
    """
    root, accelerator = recipe.output, distributed.start(recipe.tokenizer.training.precision)
    target = OutputFolder(root, PIPELINE)
    target.check(overwrite)
    if not overwrite and (report := finished_report(recipe)) is not None:
        if accelerator.is_main_process:
            say(f"{root}: finished; nothing to do (--overwrite starts over)")
            print_report(report, root.name)
        return report
    chain = Chain(recipe, accelerator)
    chain.check(overwrite)
    wait_for_all(accelerator)  # nobody looks at the folder any more
    with target.begin(overwrite, accelerator):
        if overwrite:
            chain.delete_parts()
        if accelerator.is_main_process and not (root / "recipe.yaml").is_file():
            write_text(root / "recipe.yaml", dump(recipe))
        timer = StageTimer(root, accelerator, fresh=overwrite)
        for name, stage in chain.stages():
            with timer(name):
                stage()
        with timer("evaluate"):
            figures = chain.evaluate()
        names = [name for name, _ in chain.stages()] + ["evaluate"]
        seconds = {name: timer.seconds[name] for name in names if name in timer.seconds}
        report = {"recipe": identity(recipe), "sources": sources(recipe), **figures, "seconds": seconds}
        if accelerator.is_main_process:
            for name in set(FIGURES) - set(figures_of(report)):  # those of an earlier recipe
                (root / name).unlink(missing_ok=True)
            write_text(root / "recipe.yaml", dump(recipe))
            write_report(root, report, f"{root.name}: from images to tokens to new images")
            print_report(report, root.name)
        wait_for_all(accelerator)
    return report


def identity(recipe: PipelineRecipe) -> Mapping[str, Any]:
    """The recipe without secrets, without the folder that it writes, which may be moved, and without options that
    change no result.
    """
    training = set(BOOKKEEPING)
    left_out = {
        "output": True,
        "tokenizer": {"output": True, "data": set(RESOURCES), "training": training},
        "prior": {"output": True, "tokens": True, "training": training},
        "encode": {"batch_size"},
        "sample": {"batch_size"},
        "evaluate": {"classifier": {"training": training}},
    }
    return redact(recipe.model_dump(mode="json", exclude=left_out))


def sources(recipe: PipelineRecipe) -> dict[str, str]:
    """The digest of what each stage has finished."""
    names = [name for name in SOURCES if recipe.sample.candidates or not name.startswith("chosen/")]
    return {name: sha256_of(recipe.output / name) for name in names if (recipe.output / name).is_file()}


def finished_report(recipe: PipelineRecipe) -> Report | None:
    """The report of this recipe, unless something that it was made from has changed or is missing."""
    root = recipe.output
    report = read_json_if_valid(root / "report.json")
    if report is None or not is_complete(report) or report.get("recipe") != identity(recipe):
        return None
    shown = all((root / name).is_file() for name in figures_of(report))
    return report if shown and report.get("sources") == sources(recipe) else None


@dataclass(frozen=True)
class Chain:
    """The stages of a recipe, in order. Those that may refuse the recipe come before those that replace anything."""

    recipe: PipelineRecipe
    accelerator: Accelerator

    @property
    def root(self) -> Path:
        return self.recipe.output

    def stages(self) -> list[tuple[str, Callable[[], object]]]:
        return [
            ("tokenizer", self.train_tokenizer),
            ("encode", self.encode),
            ("prior", self.train_prior),
            *([("classifier", self.train_classifier)] if self.classifier else []),
            ("image pipeline", self.save_image_pipeline),
            *([("candidates", self.choose)] if self.recipe.sample.candidates else []),
            ("sample", self.sample),
            ("reconstruct", self.reconstruct),
        ]

    @property
    def classifier(self) -> ClassifierRecipe | None:
        return classifier_recipe(self.recipe)

    def check(self, overwrite: bool) -> None:
        """Refuse, before anything is trained or deleted, numbers and data that a later stage could not use.

        Raises:
            UserError: names the key and what was found.
        """
        if overwrite:
            self.check_parts()
        check_numbers(self.recipe, self.accelerator.num_processes)
        trained = all((self.root / stage / "done.json").is_file() for stage in ("tokenizer", "prior"))
        if overwrite or not trained:
            with first_process(self.accelerator):  # downloads once
                check_models_and_data(self.recipe)

    def parts(self) -> list[OutputFolder]:
        folders = [OutputFolder(self.root / name, kind) for name, kind in PARTS_OF_PIPELINE.items()]
        return [folder for folder in folders if folder.path.exists()]

    def check_parts(self) -> None:
        """Raises UserError where the folder of a stage holds something else, or another command works in it."""
        with first_process(self.accelerator) as first:
            for part in self.parts() if first else ():
                part.check(overwrite=True)

    def delete_parts(self) -> None:
        """Delete what the stages have written."""
        with first_process(self.accelerator) as first:
            for part in self.parts() if first else ():
                with part.begin(overwrite=True):
                    pass

    def train_tokenizer(self) -> None:
        train_recipe(self.recipe.tokenizer)

    def encode(self) -> None:
        chosen, folder = self.recipe.encode, self.root / "tokens"
        data, splits = self.recipe.tokenizer.data, chosen.splits
        encode(self.root / "tokenizer", data, folder, splits, chosen.num_shards, chosen.batch_size)

    def train_prior(self) -> None:
        train_recipe(self.recipe.prior)

    def train_classifier(self) -> None:
        recipe = self.classifier
        assert recipe is not None
        replaced = _holds_another_run(recipe)
        wait_for_all(self.accelerator)  # nobody looks at the folder any more
        train_recipe(recipe, replaced)

    def save_image_pipeline(self) -> None:
        """Put the best tokenizer and prior together, unless just these stand there already."""
        folder, options = self.root / "image_pipeline", self.recipe.sample.options
        with first_process(self.accelerator) as first:
            if not first or self._holds_these_models(folder):
                return
            tokenizer, prior = load_tokenizer(self.root / "tokenizer"), load_prior(self.root / "prior")
            ImageGenerationPipeline(tokenizer, prior, options).save_pretrained(folder, overwrite=True)

    def _holds_these_models(self, folder: Path) -> bool:
        parts = [(resolve_folder(self.root / part), folder / part) for part in PARTS]
        try:
            names = ("model.safetensors", CAPTIONS)
            files = [(ours / name, theirs / name) for ours, theirs in parts for name in names]
            same = all(_same_file(*pair) for pair in files if pair[0].is_file())
            return same and read_generation_config(folder) == self.recipe.sample.options
        except UserError:
            return False

    def sample(self) -> None:
        self._sample("samples", None)

    def choose(self) -> None:
        self._sample("chosen", self.recipe.sample.candidates)

    def _sample(self, name: str, candidates: CandidateOptions | None) -> None:
        wanted = self.recipe.sample
        request = SampleRequest(
            prompts=self.prompts(-(-wanted.num_images // candidates.keep) if candidates else wanted.num_images),
            num_images=wanted.num_images,
            candidates=candidates,
            seed=wanted.seed,
            batch_size=wanted.batch_size,
        )
        sample(self.root / "image_pipeline", self.root / name, request, replace_others=True)

    def prompts(self, most: int) -> tuple[str, ...] | None:
        """The captions to draw; None where the prior reads none, or where no held-out image has one."""
        given = self.recipe.sample.prompts
        if self.recipe.prior.condition != "caption" or given is not None:
            return given
        held_out = TokenDataset.open(self.root / "tokens").split(self.recipe.evaluate.split)
        return tuple(distinct_captions(held_out, most)) or None

    def reconstruct(self) -> None:
        chosen, target = self.recipe.evaluate, self.root / "reconstructions"
        request = ReconstructionRequest(split=chosen.split, max_images=chosen.max_images, num_pairs=chosen.num_pairs)
        data = self.recipe.tokenizer.data
        reconstruct(self.root / "tokenizer", data, target, request, replace_others=True)

    def evaluate(self) -> dict[str, Any]:
        """The figures of the finished stages, the same on all processes."""
        root, chosen, candidates = self.root, self.recipe.evaluate, self.recipe.sample.candidates
        bits = token_bits(
            root / "prior", root / "tokens", chosen.split, chosen.max_images, accelerator=self.accelerator
        )
        usage = code_usage(root / "tokenizer", root / "tokens", chosen.split, root / "codes.png", self.accelerator)
        with first_process(self.accelerator) as first:
            if first:
                place_figure(root / "reconstructions" / "reconstructions.png", root / "reconstructions.png")
                self.draw_overview()
        return {
            "reconstruction": read_json_mapping(root / "reconstructions" / "reconstruction.json")["fidelity"],
            "codes": asdict(usage),
            "bits_per_token": asdict(bits),
            **self._images_drawn("samples"),
            "chosen": candidates
            and {"num_candidates": candidates.num_candidates, **self._images_drawn("chosen", CHOSEN)},
        }

    def draw_overview(self) -> None:
        """What the pipeline does, in one figure: images, codes, reconstructions; new codes and new images."""
        pipeline = ImageGenerationPipeline.from_pretrained(self.root / "image_pipeline", self.accelerator.device)
        images = open_images(self.recipe.tokenizer.data, self.recipe.evaluate.split)
        shown = images.read_batch(range(min(OVERVIEW_ROWS, len(images))))
        conditions = [self._condition(pipeline, i, row.text) for i, row in enumerate(shown.metadata)]
        rows = overview_rows(pipeline, shown.image, conditions, self.recipe.sample.seed)
        draw_overview(self.root / "overview.png", rows, [grid.num_codes for grid in pipeline.prior.spec.code_grids])

    @staticmethod
    def _condition(pipeline: ImageGenerationPipeline, index: int, caption: str | None) -> ImageCondition:
        """Of the sample beside the image of that index: its caption, or the labels in turn."""
        if pipeline.takes_captions:
            return ImageCondition(prompt=caption or "")
        return ImageCondition(index % pipeline.num_classes if pipeline.num_classes else None)

    def _images_drawn(self, name: str, prefix: str = "") -> dict[str, Any]:
        """Of the images in the folder `name`: how many show their labels or captions, where these can be checked, and
        figures, whose names begin with `prefix`.
        """
        samples = read_samples(self.root / name)
        with first_process(self.accelerator) as first:
            if first:
                place_figure(self.root / name / "samples.png", self.root / f"{prefix}samples.png")
        return {
            "labels": self._label_accuracy(samples) if self.recipe.prior.condition == "label" else None,
            "captions": self._caption_accuracy(samples, prefix),
            "prompts": self._prompts_drawn(samples, prefix),
        }

    def _caption_accuracy(self, samples: Samples, prefix: str) -> dict[str, Any] | None:
        data, chosen = self.recipe.tokenizer.data, self.recipe.evaluate
        if samples.prompts is None or not checks_captions(data):
            return None
        tokenizer = load_tokenizer(self.root / "tokenizer", self.accelerator.device)
        check = CaptionCheck(samples, data, tokenizer, self.root, prefix + FIGURE)
        return asdict(check.measure(chosen.split, chosen.max_images, self.accelerator))

    def _prompts_drawn(self, samples: Samples, prefix: str) -> dict[str, int] | None:
        """Of samples that no checker reads."""
        if samples.prompts is None or checks_captions(self.recipe.tokenizer.data):
            return None
        train = TokenDataset.open(self.root / "tokens").split("train")
        return report_prompts(self.root / (prefix + PROMPTS), samples, train, self.accelerator)

    def _label_accuracy(self, samples: Samples) -> dict[str, Any]:
        chosen = self.recipe.evaluate
        found = label_accuracy(
            samples,
            self.recipe.tokenizer.data,
            classifier=self.root / "classifier" if self.classifier else None,
            split=chosen.split,
            max_images=chosen.max_images,
            accelerator=self.accelerator,
        )
        return asdict(found)


def _holds_another_run(recipe: ClassifierRecipe) -> bool:
    """Another recipe's classifier makes room: it takes a minute, and no other model depends on it."""
    try:
        RunFolder(recipe.output).check(recipe, image_digests(recipe.data))
    except UserError:
        return True
    return False


def _same_file(one: Path, other: Path) -> bool:
    return other.is_file() and sha256_of(one) == sha256_of(other)
