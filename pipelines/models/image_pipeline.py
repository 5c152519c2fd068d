"""ImageGenerationPipeline: a tokenizer and a prior that belong together, from a prompt or a label to images."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from pipelines.base.errors import DataWarning, UserError
from pipelines.base.image_grids import to_pil
from pipelines.models import hub
from pipelines.models.candidate_options import LIKELIHOOD
from pipelines.models.captions import takes_captions
from pipelines.models.checkpoint import LoadedPrior, LoadedTokenizer, load_prior, load_tokenizer
from pipelines.models.conditions import ImageCondition, Prompts, prompt_texts
from pipelines.models.image_pipeline_folder import find_image_pipeline, read_generation_config, write_image_pipeline
from pipelines.models.image_seeds import Seeds, image_seeds
from pipelines.models.labels import Label, label_number
from pipelines.models.rerank import (
    DrawnImages,
    Rerank,
    Scorer,
    check_counts,
    join,
    keep_best,
    open_scorer,
)
from prior import CachedDecoder, GenerationOutput, SamplingOptions, SamplingRequest, Step, generate

PIXELS_PER_PASS = {"cpu": 2**19, "cuda": 2**21}  # 8 and 32 images of 256 x 256: fixed, so that no option of a user
MOST_IMAGES_PER_PASS = {"cpu": 16, "cuda": 256}  # changes an image
SAMPLING_ONLY_OPTIONS = ("temperature", "top_k", "top_p", "min_p")  # of no meaning without do_sample

StepEndCallback = Callable[["ImageGenerationPipeline", int, int, dict[str, Any]], object]
OutputType = Literal["pil", "pt", "np"]


class SamplingArguments(TypedDict, total=False):
    """The options of `prior.SamplingOptions`, each of which a call may override."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    do_sample: bool
    guidance_scale: float


@dataclass(frozen=True)
class ImageGenerationOutput:
    """n images: `images` as asked for (PIL; tensor (n, c, H, W) or array (n, H, W, c) of floats in [0, 1]).

    `tokens` are their codes, `logprobs` the log-probability in nats of every code under the conditional model as
    trained (temperature 1, no filter, no guidance): `logprobs.sum(1)` ranks the images. `labels` are class numbers,
    `prompts` captions as they were given; None where there was none. Image i comes back alone from
    `generator=[seeds[i]]` with its label or its prompt. `scores` are those by which candidates were chosen.
    """

    images: list[Image.Image] | Float[Tensor, "n c h w"] | np.ndarray
    tokens: Int[Tensor, " n *codes"]
    logprobs: Float[Tensor, "n length"]
    labels: list[int | None]
    prompts: list[str | None]
    seeds: list[int]
    scores: Float[Tensor, " n"] | None = None


class ImageGenerationPipeline:
    """A tokenizer and a prior that belong together, and the sampling options that a call takes where it says nothing.

    Raises:
        UserError: the prior was trained on tokens of another tokenizer; names both sides.
    """

    def __init__(
        self, tokenizer: LoadedTokenizer, prior: LoadedPrior, generation_config: SamplingOptions | None = None
    ):
        prior.spec.check_tokenizer(tokenizer.fingerprint, str(tokenizer.folder), f"the tokens of {prior.folder}")
        self.tokenizer, self.prior = tokenizer, prior
        self.generation_config = generation_config or SamplingOptions()
        self._decoder: CachedDecoder | None = None
        self._too_long: set[str] = set()  # prompts that have been warned of
        self._scorers: dict[str, Scorer] = {}  # by the name that `rerank` has

    @property
    def device(self) -> torch.device:
        return self.prior.model.device

    @property
    def num_classes(self) -> int | None:
        """None: the prior takes no labels."""
        return self.prior.model.vocabulary.num_classes

    @property
    def takes_captions(self) -> bool:
        """Whether the prior was trained on captions, so that calls may have a prompt."""
        return takes_captions(self.prior.model.vocabulary)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the labels, where the data had names."""
        return self.prior.classes if self.num_classes is not None else None

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move both models, and cast them for sampling. A cast pipeline can no longer be saved."""
        for model in (self.tokenizer.model, self.prior.model):
            model.to(device=device, dtype=dtype)
        self._scorers.clear()
        return self

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
    ) -> Self:
        """From an image pipeline's folder, the output of `smalti run`, which holds one, or a repository on the hub.

        Raises:
            UserError: no such folder; a part is missing or damaged; tokenizer and prior do not belong together.
        """
        folder = find_image_pipeline(hub.local_folder(name_or_path, revision))
        options = read_generation_config(folder)
        pipeline = cls(load_tokenizer(folder / "tokenizer"), load_prior(folder / "prior"), options)
        return pipeline.to(device, dtype) if device is not None or dtype is not None else pipeline

    def save_pretrained(self, folder: str | Path, overwrite: bool = False, card: str | None = None) -> Path:
        """Write the image pipeline's folder, which can be moved as a whole.

        Raises:
            UserError: the folder holds an image pipeline and `overwrite` is off, it holds anything else, or the models
                were cast to another dtype.
        """
        cast = {p.dtype for m in (self.tokenizer.model, self.prior.model) for p in m.parameters()} - {torch.float32}
        if cast:
            raise UserError(f"{folder}: the models were cast to {cast.pop()}; save before casting, in torch.float32")
        return write_image_pipeline(folder, self.tokenizer, self.prior, self.generation_config, overwrite, card)

    def push_to_hub(self, repo_id: str, private: bool = False, message: str = "Upload by smalti") -> str:
        """Save into a temporary folder and upload it; returns the address of the commit."""
        with TemporaryDirectory() as place:
            return hub.push(self.save_pretrained(Path(place) / "image_pipeline"), repo_id, private, message)

    def __call__(
        self,
        prompt: Prompts | None = None,
        *,
        label: Label | Sequence[Label] | None = None,
        num_images_per_prompt: int = 1,
        num_candidates: int | None = None,
        rerank: Rerank | None = None,
        generator: Seeds = None,
        output_type: OutputType = "pil",
        batch_size: int = 64,
        callback_on_step_end: StepEndCallback | None = None,
        **options: Unpack[SamplingArguments],
    ) -> ImageGenerationOutput:
        """Draw `num_images_per_prompt` images of each prompt or label, those of one side by side.

        `prompt`: a caption or a list of them, for a prior that was trained on captions; a DataWarning says where one is
        too long and is cut off. `label`: a class number, a class name, or a list of them, for a prior that was trained
        on labels. Neither: no condition. `generator`: an int seeds the whole call, image i by `image_seeds`; a list
        gives each image its own seed; a torch.Generator provides the int; None takes a fresh one.
        `batch_size` bounds memory, it does not change images. `callback_on_step_end(pipeline, step, steps, {"codes":
        (b,), "logprobs": (b,), "images": range})` runs after every code of every batch.

        `num_candidates` of each prompt or label are drawn, and of these the best are given back, the best first, by
        `rerank`: "likelihood" (the default) or "likelihood_ratio" under the prior, or "clip:FOLDER" or
        "clip:owner/name", a CLIP model of transformers (`CandidateOptions` says when to take which); or a function of
        images (n, c, H, W) in [0, 1] and the prompt or the name of the label, which gives n scores, the higher the
        better. Seeds and the callback's `images` then count candidates.

        Options not given come from `generation_config`, unless they would contradict the given ones (filters under
        do_sample=False, guidance without a condition); None switches a filter off.

        Raises:
            UserError: unknown label or option, a prompt or a label for a prior that was not trained on such, an
                impossible pair of options; as `open_scorer`.
        """
        check_counts(num_images_per_prompt, num_candidates, rerank)
        conditions = self.conditions(prompt, label, num_candidates or num_images_per_prompt)
        chosen = self.options(conditional=not conditions[0].is_null, **options)
        scorer = self.scorer(rerank or LIKELIHOOD, not conditions[0].is_null) if num_candidates else None
        if output_type not in ("pil", "pt", "np"):
            raise UserError(f"output_type: found {output_type!r}, expected 'pil', 'pt' or 'np'")
        if batch_size < 1:
            raise UserError(f"batch_size: found {batch_size}, expected at least 1")
        seeds, parts = image_seeds(generator, len(conditions)), []
        for rows in _spans(range(len(conditions)), batch_size, num_candidates or 1):
            drawn = join(
                [self._draw(part, conditions, seeds, chosen, callback_on_step_end) for part in _spans(rows, batch_size)]
            )
            if scorer is not None:
                texts = [conditions[row].title(self.classes) or None for row in rows[::num_candidates]]
                drawn = keep_best(drawn, texts, scorer, num_images_per_prompt)
            parts.append(drawn)
        return self._output(join(parts), conditions, seeds, output_type)

    def _draw(
        self,
        rows: range,
        conditions: list[ImageCondition],
        seeds: list[int],
        options: SamplingOptions,
        callback: StepEndCallback | None,
    ) -> DrawnImages:
        """The images of these rows, side by side."""
        values = self.condition_values(conditions[rows.start : rows.stop])
        request = SamplingRequest(seeds[rows.start : rows.stop], values, options)
        step_end = self._step_end(callback, rows)
        drawn = generate(self.prior.model, request, decoder=self.current_decoder(), callback=step_end)
        tokens = GenerationOutput(torch.as_tensor(drawn.codes.cpu()), drawn.logprobs.cpu())
        return DrawnImages(torch.tensor(rows), self.decode(drawn.codes), tokens)

    def _output(
        self, drawn: DrawnImages, conditions: list[ImageCondition], seeds: list[int], output_type: OutputType
    ) -> ImageGenerationOutput:
        rows, tokens = drawn.rows.tolist(), drawn.tokens
        labels, prompts = ([getattr(conditions[row], name) for row in rows] for name in ("label", "prompt"))
        images = as_output(drawn.images, output_type)
        seeds = [seeds[row] for row in rows]
        return ImageGenerationOutput(images, tokens.codes, tokens.logprobs, labels, prompts, seeds, drawn.scores)

    def scorer(self, rerank: Rerank, conditional: bool) -> Scorer:
        """What `rerank` names; a CLIP model is loaded once. Raises UserError as `open_scorer`."""
        if not isinstance(rerank, str):
            return open_scorer(rerank, self.prior.model, conditional)
        if rerank not in self._scorers or not conditional:
            self._scorers[rerank] = open_scorer(rerank, self.prior.model, conditional)
        return self._scorers[rerank]

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, " b *codes"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1], float32 on the CPU.

        Every pass has one size, the last one padded: kernels are chosen by shape and round differently, and a level of
        a pixel that flips would make an image depend on its neighbours.
        """
        model, passes = self.tokenizer.model, images_per_pass(self.device.type, self.tokenizer.model.config.image_size)
        padded = torch.cat([codes, codes.new_zeros(-len(codes) % passes, *codes.shape[1:])])
        images = torch.cat([model.decode_codes(part).float().cpu() for part in padded.to(self.device).split(passes)])
        return images[: len(codes)].clamp(0, 1)

    def conditions(
        self, prompt: Prompts | None = None, label: Label | Sequence[Label] | None = None, repeats: int = 1
    ) -> list[ImageCondition]:
        """What each image of a call is drawn under: each prompt or each label `repeats` times.

        Raises:
            UserError: both are given, or one that the prior was not trained on; lists the classes that there are.
        """
        if repeats < 1:
            raise UserError(f"num_images_per_prompt: found {repeats}, expected at least 1")
        if prompt is not None and label is not None:
            raise UserError(f"prompt: found {prompt!r} beside the label {label!r}, expected one of them")
        given = [ImageCondition()]
        if prompt is not None:
            texts = prompt_texts(prompt, self.takes_captions, self.num_classes, "prior")
            self._warn_of_long(texts)
            given = [ImageCondition(prompt=text) for text in texts]
        elif label is not None:
            given = [ImageCondition(label=number) for number in self._numbers(label)]
        return [each for each in given for _ in range(repeats)]

    def condition_values(self, conditions: Sequence[ImageCondition]) -> Int[Tensor, "n ..."] | None:
        """What the prior reads: labels (n,) or words of captions (n, length), -1 where there is none. None: nothing."""
        if conditions[0].is_null:
            return None
        if self.prior.captions is None:
            return torch.tensor([each.label for each in conditions], device=self.device)
        texts = [each.prompt for each in conditions]
        return self.prior.captions.encode(texts, self.prior.model.vocabulary.condition.length).to(self.device)

    def options(self, conditional: bool, **options: Unpack[SamplingArguments]) -> SamplingOptions:
        """The given options over `generation_config`; see `__call__`."""
        defaults = self.generation_config.model_dump()
        if options.get("do_sample", True) is False:
            defaults = {name: value for name, value in defaults.items() if name not in SAMPLING_ONLY_OPTIONS}
        if not conditional:
            defaults.pop("guidance_scale")
        unknown = options.keys() - SamplingOptions.model_fields.keys()
        if unknown:
            expected = ", ".join(SamplingOptions.model_fields)
            raise UserError(f"{min(unknown)}: unknown sampling option, expected one of {expected}")
        try:
            chosen = SamplingOptions(**{**defaults, **options})
        except ValidationError as error:
            raise UserError("; ".join(_described(detail) for detail in error.errors())) from error
        model, wanted = self.prior.model, "prompt" if self.takes_captions else "label"
        if chosen.guided and not conditional:
            why = f"no {wanted} was given" if model.vocabulary.conditional else "this prior is unconditional"
            raise UserError(f"guidance_scale needs a {wanted}, got guidance_scale={chosen.guidance_scale}, and {why}")
        if not conditional and model.vocabulary.conditional and not model.can_be_guided:
            raise UserError(
                f"{wanted}: found none, expected one: this prior was trained with condition_dropout=0, so that it "
                "never saw the null condition"
            )
        if chosen.guided and not model.can_be_guided:
            raise UserError(
                f"guidance_scale: found {chosen.guidance_scale}, expected 1: this prior was trained with "
                "condition_dropout=0, so that it never saw the null condition that guidance needs"
            )
        return chosen

    def _warn_of_long(self, prompts: list[str]) -> None:
        """One DataWarning for each prompt that has more tokens than the prior reads."""
        length, captions = self.prior.model.vocabulary.condition.length, self.prior.captions
        assert captions is not None  # the prior takes prompts
        for text, found in zip(prompts, captions.num_tokens(prompts), strict=True):
            if found > length and text not in self._too_long:
                self._too_long.add(text)
                text = text if len(text) <= 60 else f"{text[:57]}…"
                message = f"prompt: {text!r} has {found} tokens; those after the first {length} are cut off"
                warnings.warn(message, DataWarning, stacklevel=4)

    def current_decoder(self) -> CachedDecoder:
        """The decoder of the prior's weights as they are now, shared by all batches and calls."""
        if self._decoder is None or not self._decoder.matches(self.prior.model):
            self._decoder = CachedDecoder(self.prior.model)
        return self._decoder

    def _numbers(self, label: Label | Sequence[Label]) -> list[int]:
        wanted = [label] if isinstance(label, int | str) else list(label)
        if self.takes_captions and wanted:
            raise UserError(f"label: found {wanted[0]!r}, but this prior was trained on captions; expected a prompt")
        if not wanted:
            raise UserError("label: found an empty list, expected at least one label, or None for no condition")
        return [label_number(each, self.num_classes, self.classes, "prior") for each in wanted]

    def _step_end(self, callback: StepEndCallback | None, rows: range) -> Callable[[Step], object] | None:
        if callback is None:
            return None
        steps = self.prior.model.vocabulary.code_length
        return lambda step: callback(
            self, step.position, steps, {"codes": step.codes, "logprobs": step.logprobs, "images": rows}
        )


def _spans(rows: range, at_most: int, multiple: int = 1) -> list[range]:
    """Consecutive parts of the rows, of a multiple of rows each: at most so many, or one multiple."""
    size = max(1, at_most // multiple) * multiple
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def images_per_pass(device: str, image_size: int) -> int:
    """How many images one pass of the decoder makes."""
    pixels, most = (table.get(device, table["cpu"]) for table in (PIXELS_PER_PASS, MOST_IMAGES_PER_PASS))
    return max(1, min(most, pixels // image_size**2))


def _described(detail: Any) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    key = ".".join(str(part) for part in detail["loc"])
    return f"{key}: found {detail['input']!r}, expected: {detail['msg'].removeprefix('Input should be ')}"


def as_output(images: Float[Tensor, "n c h w"], output_type: str) -> list[Image.Image] | Tensor | np.ndarray:
    """Images as `ImageGenerationOutput` has them."""
    match output_type:
        case "pt":
            return images
        case "np":
            return images.permute(0, 2, 3, 1).numpy()
        case _:
            return [to_pil(image) for image in images]
