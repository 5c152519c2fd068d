"""What draws new images: an image pipeline, from the prior over its tokens, or a continuous tokenizer, from p(z)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.base.atomic_files import sha256_of
from pipelines.base.errors import UserError
from pipelines.models.candidate_options import CandidateOptions
from pipelines.models.captions import CAPTIONS
from pipelines.models.checkpoint import load_tokenizer, resolve_folder
from pipelines.models.conditions import ImageCondition, prompt_texts
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.models.image_pipeline_folder import find_image_pipeline
from pipelines.models.labels import Label, label_number


@dataclass(frozen=True)
class Drawn:
    """Images in [0, 1], their seeds, the log-likelihood in nats under the prior of what each was decoded from, and the
    scores by which they were chosen (None: none was left out).
    """

    images: Float[Tensor, "n c h w"]
    seeds: Sequence[int]
    logprobs: Float[Tensor, " n"]
    scores: Float[Tensor, " n"] | None = None


class ImageSampler(Protocol):
    """classes: names of the labels, None where they have none.

    weights: the files that decide the images, by name. options: those that are not at their defaults.
    units: what an image's progress is counted in, and how many of them an image has.
    """

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    @property
    def weights(self) -> Mapping[str, Path]: ...

    @property
    def units(self) -> tuple[str, int]: ...

    def conditions(self, prompts: Sequence[str] | None, labels: Sequence[Label] | None) -> list[ImageCondition]:
        """What images are drawn under, in turn. Neither: every class, if there are classes, else no condition.

        UserError for a prompt or a label that it does not take.
        """
        ...

    def options(self, conditional: bool) -> dict[str, Any]:
        """UserError for options that it does not know, or that do not go together."""
        ...

    def candidates(self, conditional: bool) -> dict[str, Any] | None:
        """What decides which candidates are kept; None where all images are. UserError as `open_scorer`."""
        ...

    def draw(
        self,
        conditions: Sequence[ImageCondition],
        seeds: Sequence[int],
        batch_size: int,
        advance: Callable[[int], object],
    ) -> Drawn:
        """The best candidates of each condition, those of one side by side; each has as many seeds.

        Conditions are of one kind.
        """
        ...


def open_sampler(
    folder: Path, device: torch.device, options: Mapping[str, Any], candidates: CandidateOptions | None = None
) -> ImageSampler:
    """What is in a folder: an image pipeline or the output of `smalti run`, or a continuous tokenizer or its run.

    Raises:
        UserError: neither, or a tokenizer with codes; candidates of a continuous tokenizer.
    """
    pipelines = (folder / "model_index.json", folder / "image_pipeline" / "model_index.json")
    models = (folder / "config.json", folder / "best" / "config.json", folder / "last" / "config.json")
    if not any(path.is_file() for path in pipelines) and any(path.is_file() for path in models):
        if candidates is not None:
            raise UserError(f"{folder}: candidates are those of a prior over tokens; expected an image pipeline")
        return LatentSampler(folder, device, options)
    if not any(path.is_file() for path in pipelines) and (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder}: no model was saved yet, or no pipeline finished; rerun the command that writes it")
    return TokenSampler(find_image_pipeline(folder), device, options, candidates)


class TokenSampler:
    """An image pipeline."""

    def __init__(
        self, folder: Path, device: torch.device, options: Mapping[str, Any], chosen: CandidateOptions | None = None
    ):
        self.pipeline, self.given = ImageGenerationPipeline.from_pretrained(folder, device), dict(options)
        self.chosen = chosen
        self.weights = {part: folder / part / "model.safetensors" for part in ("tokenizer", "prior")}
        if self.pipeline.takes_captions:
            self.weights["captions"] = folder / "prior" / CAPTIONS
        self.classes = self.pipeline.classes
        self.units = "token", self.pipeline.prior.model.vocabulary.code_length

    def conditions(self, prompts: Sequence[str] | None, labels: Sequence[Label] | None) -> list[ImageCondition]:
        if prompts is None and labels is None and self.pipeline.num_classes is not None:
            labels = range(self.pipeline.num_classes)
        return self.pipeline.conditions(prompts, labels)

    def options(self, conditional: bool) -> dict[str, Any]:
        chosen = self.pipeline.options(conditional, **self.given)
        return chosen.model_dump(mode="json", exclude_defaults=True)

    def candidates(self, conditional: bool) -> dict[str, Any] | None:
        if self.chosen is None:
            return None
        scorer = self.pipeline.scorer(self.chosen.rerank, conditional)
        kind = self.chosen.rerank.partition(":")[0]  # a folder may be moved
        return {**self.chosen.model_dump(), "rerank": kind, "weights": [sha256_of(path) for path in scorer.weights]}

    def draw(
        self,
        conditions: Sequence[ImageCondition],
        seeds: Sequence[int],
        batch_size: int,
        advance: Callable[[int], object],
    ) -> Drawn:
        choice = self.chosen
        drawn = self.pipeline(
            [each.prompt for each in conditions if each.prompt is not None] or None,
            label=[each.label for each in conditions if each.label is not None] or None,
            num_images_per_prompt=choice.keep if choice else len(seeds) if conditions[0].is_null else 1,
            num_candidates=choice.num_candidates if choice else None,
            rerank=choice.rerank if choice else None,
            generator=list(seeds),
            output_type="pt",
            batch_size=batch_size,
            callback_on_step_end=lambda _, step, steps, found: advance(len(found["codes"])),
            **self.given,
        )
        return Drawn(torch.as_tensor(drawn.images), drawn.seeds, drawn.logprobs.double().sum(1), drawn.scores)


class LatentSampler:
    """A continuous tokenizer: latents of its own prior p(z), decoded to the likelihood's mean.

    Of the options it takes `temperature`, see `LatentDistribution.sample`.
    """

    def __init__(self, folder: Path, device: torch.device, options: Mapping[str, Any]):
        tokenizer, self.given = load_tokenizer(folder, device), dict(options)
        self.model, self.classes = tokenizer.model, tokenizer.classes
        if self.model.num_codes is not None:
            raise UserError(
                f"{folder}: is a tokenizer with codes ({self.model.config.bottleneck.kind}), which needs a prior over "
                "them to draw images; expected an image pipeline, the output of `smalti run`, or a continuous tokenizer"
            )
        self.temperature = self.given.get("temperature", 1.0)
        condition = self.model.config.condition
        self.num_classes = None if condition is None else condition.num_classes
        self.weights = {"tokenizer": resolve_folder(folder) / "model.safetensors"}
        self.units = "image", 1

    def conditions(self, prompts: Sequence[str] | None, labels: Sequence[Label] | None) -> list[ImageCondition]:
        if prompts is not None:
            prompt_texts(prompts, False, self.num_classes, "tokenizer")
        if labels is None:
            return [ImageCondition(label) for label in range(self.num_classes or 0)] or [ImageCondition()]
        return [ImageCondition(label_number(label, self.num_classes, self.classes, "tokenizer")) for label in labels]

    def options(self, conditional: bool) -> dict[str, Any]:
        if unknown := sorted(self.given.keys() - {"temperature"}):
            raise UserError(
                f"{unknown[0]}: is an option of a prior over tokens; a continuous tokenizer draws from its latent "
                "prior and takes a temperature alone"
            )
        wanted = self.temperature
        if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 < wanted < math.inf:
            raise UserError(f"temperature: found {wanted!r}, expected a finite number above 0")
        return {} if self.temperature == 1 else {"temperature": self.temperature}

    def candidates(self, conditional: bool) -> dict[str, Any] | None:
        return None

    @torch.no_grad()
    def draw(
        self,
        conditions: Sequence[ImageCondition],
        seeds: Sequence[int],
        batch_size: int,
        advance: Callable[[int], object],
    ) -> Drawn:
        known = [each.label for each in conditions if each.label is not None]
        labels = torch.tensor(known) if known else None
        prior = self.model.latent_distribution(labels)
        assert prior is not None  # the model is continuous
        z = prior.sample(len(seeds), [torch.Generator().manual_seed(seed) for seed in seeds], self.temperature)
        z = z.to(next(self.model.parameters()).device)
        images = self.model.decode(z, labels).clamp(0, 1)
        advance(len(seeds))
        return Drawn(images, seeds, prior.log_prob(z[:, None])[:, 0].double().cpu())
