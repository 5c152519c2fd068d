"""Completing images: some codes of an image are kept, the others are drawn by the prior, and all are decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.models.conditions import ImageCondition, Prompts
from pipelines.models.image_pipeline import (
    ImageGenerationPipeline,
    OutputType,
    SamplingArguments,
    as_output,
)
from pipelines.models.image_seeds import Seeds, image_seeds
from pipelines.models.labels import Label
from pipelines.models.masked_images import MaskedImages, Pictures, mask_images
from prior import (
    SamplingOptions,
    SamplingRequest,
    choose_candidates,
    effective_candidates,
    generate,
    importance_log_weights,
    kept_after_a_draw,
)


@dataclass(frozen=True)
class Completions:
    """Whole codes of n completions and their log-probabilities, in nats, as those of `ImageGenerationOutput`.

    `effective_candidates`: how many candidates had a say, from 1 (one outweighs all others) to their number.
    """

    codes: Int[Tensor, " n *codes"]
    logprobs: Float[Tensor, "n length"]
    effective_candidates: Float[Tensor, " n"]


@dataclass(frozen=True)
class ImageCompletionOutput:
    """n completions, those of one image side by side: `images` as asked for; `tokens`, `logprobs`, `seeds` as those of
    `ImageGenerationOutput`, `effective_candidates` as those of `Completions`; which tokens were `redrawn`.

    exact: all kept tokens come before the redrawn ones, so that the draws follow the prior exactly.
    """

    images: list[Image.Image] | Float[Tensor, "n c h w"] | np.ndarray
    tokens: Int[Tensor, " n *codes"]
    logprobs: Float[Tensor, "n length"]
    effective_candidates: Float[Tensor, " n"]
    redrawn: Bool[Tensor, " n *codes"]
    exact: bool
    seeds: list[int]


def complete_images(
    pipeline: ImageGenerationPipeline,
    image: Pictures,
    mask_image: Pictures,
    *,
    prompt: Prompts | None = None,
    label: Label | Sequence[Label] | None = None,
    num_images_per_prompt: int = 1,
    num_candidates: int = 1,
    margin: int = 0,
    paste_original: bool = False,
    generator: Seeds = None,
    output_type: OutputType = "pil",
    batch_size: int = 64,
    **options: Unpack[SamplingArguments],
) -> ImageCompletionOutput:
    """Redraw a part of each image, `num_images_per_prompt` times.

    `image`: PIL images, or uint8 or float [0, 1] tensors (n, c, h, w) as the tokenizer takes them. `mask_image`: PIL
    images, white where an image is redrawn, or bool tensors (n, h, w) or (h, w); one for all images or one for each.
    `margin`: redraw so many pixels around the mask as well. `prompt` or `label`: one for all images or one for each.

    Tokens of cells without a pixel in the mask stay as they are, and the image is decoded whole, so that pixels near
    the mask may change a little. `paste_original` puts the original pixels outside of the mask back. Kept tokens near
    the mask come from an encoder that saw what is under the mask; a margin keeps less of it.

    A draw sees the tokens before it alone, in raster order: for kept top rows it follows the prior exactly, otherwise
    kept tokens after it have no say. `num_candidates` draws so many completions for each and chooses one by how likely
    it makes these tokens, which becomes exact as the number grows (`prior.completion`).

    The other arguments are those of `ImageGenerationPipeline.__call__`.

    Raises:
        UserError: images, masks, prompts or labels that do not fit, or as `ImageGenerationPipeline.__call__`.
    """
    masked = mask_images(pipeline, image, mask_image, margin)
    count = len(masked.codes)
    conditions = for_each_image(pipeline.conditions(prompt, label), count, name="label" if prompt is None else "prompt")
    chosen = pipeline.options(conditional=not conditions[0].is_null, **options)
    if num_images_per_prompt < 1:
        raise UserError(f"num_images_per_prompt: found {num_images_per_prompt}, expected at least 1")
    if output_type not in get_args(OutputType):
        raise UserError(f"output_type: found {output_type!r}, expected one of {', '.join(get_args(OutputType))}")
    rows = torch.arange(count).repeat_interleave(num_images_per_prompt)
    seeds = image_seeds(generator, len(rows))
    drawn = draw_completions(
        pipeline,
        masked.kept_codes[rows],
        [conditions[row] for row in rows],
        seeds,
        chosen,
        num_candidates=num_candidates,
        batch_size=batch_size,
    )
    images = pipeline.decode(drawn.codes)
    if paste_original:
        images = with_original_pixels(images, masked, rows)
    return ImageCompletionOutput(
        as_output(images, output_type),
        drawn.codes,
        drawn.logprobs,
        drawn.effective_candidates,
        masked.redrawn[rows],
        masked.exact,
        seeds,
    )


def draw_completions(
    pipeline: ImageGenerationPipeline,
    kept_codes: Int[Tensor, "n m"],
    conditions: Sequence[ImageCondition],
    seeds: Sequence[int],
    options: SamplingOptions,
    num_candidates: int = 1,
    batch_size: int = 64,
    advance: Callable[[int], object] = lambda tokens: None,
) -> Completions:
    """A completion for each row of `kept_codes` (-1: to be drawn), chosen from its candidates.

    A completion depends on its row, condition and seed alone. Where no code is kept after a draw, all candidates count
    alike, so that only one is drawn. `advance` is told of tokens drawn.

    Raises:
        UserError: fewer than one candidate or image at once, or several candidates without sampling.
    """
    if num_candidates < 1 or batch_size < 1:
        raise UserError(f"num_candidates, batch_size: found {num_candidates}, {batch_size}, expected 1 or more")
    if num_candidates > 1 and not options.do_sample:
        raise UserError(f"num_candidates: found {num_candidates}, expected 1: under do_sample=False all are the same")
    several = kept_after_a_draw(kept_codes).any(1).tolist()
    of_row = [image_seeds(seed, num_candidates if many else 1) for seed, many in zip(seeds, several, strict=True)]
    drawn = [(row, seed) for row, found in enumerate(of_row) for seed in found]
    codes, logprobs = [], []
    for start in range(0, len(drawn), batch_size):
        part = drawn[start : start + batch_size]
        rows = [row for row, _ in part]
        condition = pipeline.condition_values([conditions[row] for row in rows])
        request = SamplingRequest([seed for _, seed in part], condition, options, kept_codes[rows])
        found = generate(
            pipeline.prior.model,
            request,
            decoder=pipeline.current_decoder(),
            callback=lambda step: advance(len(step.codes)),
        )
        codes.append(found.codes.cpu())
        logprobs.append(found.logprobs.cpu())
    return _chosen(torch.cat(codes), torch.cat(logprobs), kept_codes, [row for row, _ in drawn], seeds)


def _chosen(
    codes: Tensor, logprobs: Tensor, kept_codes: Tensor, rows: Sequence[int], seeds: Sequence[int]
) -> Completions:
    """One candidate of each completion; `rows` says to which completion each belongs, those of one side by side."""
    weights = importance_log_weights(logprobs, kept_codes[rows])
    first = torch.tensor(rows).bincount(minlength=len(seeds)).cumsum(0).roll(1)
    first[0] = 0
    places = torch.arange(len(rows)) - first[rows]
    log_weights = torch.full((len(seeds), int(places.max()) + 1), -torch.inf, dtype=weights.dtype)
    log_weights[rows, places] = weights
    kept = first + choose_candidates(log_weights, seeds)
    return Completions(codes[kept], logprobs[kept], effective_candidates(log_weights))


def with_original_pixels(
    images: Float[Tensor, "n c h w"], masked: MaskedImages, rows: Int[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Completions of some rows of `masked`, with the original pixels outside of the mask."""
    return torch.where(masked.mask[rows][:, None], images, masked.image[rows])


def for_each_image(conditions: list[ImageCondition], count: int, name: str) -> list[ImageCondition]:
    """One condition for each image. Raises UserError unless there is one, or one for each."""
    if len(conditions) not in (1, count):
        raise UserError(f"{name}: found {len(conditions)} for {count} images, expected one or one for each")
    return conditions * count if len(conditions) == 1 else conditions
