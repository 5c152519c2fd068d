"""Which candidates of a prompt are kept: by the prior's own likelihood, by CLIP, or by any function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.models.candidate_options import CLIP, LIKELIHOOD, LIKELIHOOD_RATIO, NAMED, is_named
from pipelines.models.rerank_clip import ClipScorer
from prior import GenerationOutput, TokenPrior, likelihood_ratio

ScoreFunction = Callable[[Float[Tensor, "n c h w"], str | None], Tensor | Sequence[float]]
"""Scores of n images in [0, 1] for their prompt, or the name of their label: the higher the better."""

Rerank = str | ScoreFunction
"""`likelihood`, `likelihood_ratio`, `clip:` and a folder or a repository on the hub, or a function."""


@dataclass(frozen=True)
class DrawnImages:
    """Images in [0, 1] and their codes, on the CPU. `rows` are their numbers among all that are drawn, `scores` those
    by which they were chosen.
    """

    rows: Int[Tensor, " n"]
    images: Float[Tensor, "n c h w"]
    tokens: GenerationOutput
    scores: Float[Tensor, " n"] | None = None

    def take(self, chosen: slice | Int[Tensor, " k"]) -> "DrawnImages":
        """Some of them, without scores."""
        tokens = GenerationOutput(torch.as_tensor(self.tokens.codes[chosen]), self.tokens.logprobs[chosen])
        return DrawnImages(self.rows[chosen], self.images[chosen], tokens)


class Scorer(Protocol):
    """weights: the files beside the image pipeline's own that decide the scores."""

    weights: Sequence[Path]

    def __call__(self, candidates: DrawnImages, text: str | None) -> Float[Tensor, " n"]:
        """Of images of one condition; `text` is the prompt or the name of the label. The higher the better."""
        ...


class LikelihoodScorer:
    """log p(image | condition) in nats, by the prior that drew the images."""

    weights: Sequence[Path] = ()

    def __call__(self, candidates: DrawnImages, text: str | None) -> Float[Tensor, " n"]:
        tokens = candidates.tokens
        return _of_first_equal(tokens.codes, tokens.logprobs.double().sum(1).float())


class LikelihoodRatioScorer:
    """log p(image | condition) - log p(image) in nats, by the prior that drew the images."""

    weights: Sequence[Path] = ()

    def __init__(self, prior: TokenPrior):
        self.prior = prior

    def __call__(self, candidates: DrawnImages, text: str | None) -> Float[Tensor, " n"]:
        tokens, device = candidates.tokens, self.prior.device
        there = GenerationOutput(torch.as_tensor(tokens.codes.to(device)), tokens.logprobs.to(device))
        return _of_first_equal(tokens.codes, likelihood_ratio(self.prior, there).cpu())


class TextScorer:
    """CLIP's score, or that of a user's function, of each image for the text."""

    def __init__(self, function: ScoreFunction, weights: Sequence[Path] = ()):
        self.function, self.weights = function, weights

    def __call__(self, candidates: DrawnImages, text: str | None) -> Float[Tensor, " n"]:
        scores = torch.as_tensor(self.function(candidates.images, text), dtype=torch.float32).detach().cpu()
        if scores.shape != (len(candidates.images),):
            found, expected = tuple(scores.shape), (len(candidates.images),)
            raise UserError(f"rerank: the function gave scores of the shape {found}, expected {expected}, one an image")
        if scores.isnan().any():
            raise UserError("rerank: the function gave scores that are not numbers (nan)")
        return scores


def open_scorer(rerank: Rerank, prior: TokenPrior, conditional: bool) -> Scorer:
    """What `rerank` names.

    Raises:
        UserError: nothing of that name, or images without a condition are to be scored by what compares them with it;
            the prior never saw the null condition, which `likelihood_ratio` needs; as `ClipScorer`.
    """
    if callable(rerank):
        return TextScorer(rerank)
    if not is_named(rerank):
        raise UserError(f"rerank: found {rerank!r}, expected one of {NAMED}, or a function")
    if not conditional:
        raise UserError(f"rerank: {rerank!r} compares images with their prompt or label, and there is none")
    if rerank == LIKELIHOOD:
        return LikelihoodScorer()
    if rerank != LIKELIHOOD_RATIO:
        clip = ClipScorer(rerank.removeprefix(CLIP), prior.device)
        return TextScorer(clip, clip.weights)
    if not prior.can_be_guided:
        raise UserError(
            "rerank: 'likelihood_ratio' needs the likelihood of images without a condition, and this prior was trained "
            "with condition_dropout=0, so that it never saw the null condition; expected 'likelihood', "
            "'clip:FOLDER' or a function"
        )
    return LikelihoodRatioScorer(prior)


def _of_first_equal(codes: Int[Tensor, " n *codes"], scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Equal candidates get the score of the first of them. Their own differ by roundings, which depend on the batch,
    and must not say whose seed is kept.
    """
    kinds = codes.flatten(1).unique(dim=0, return_inverse=True)[1]
    first = torch.full_like(kinds, len(kinds)).scatter_reduce(0, kinds, torch.arange(len(kinds)), "amin")
    return scores[first[kinds]]


def check_counts(kept: int, num_candidates: int | None, rerank: Rerank | None) -> None:
    """Raise UserError where no image is to be kept, there are fewer candidates than that, or a rerank without any."""
    if kept < 1:
        raise UserError(f"num_images_per_prompt: found {kept}, expected at least 1")
    if num_candidates is None and rerank is not None:
        raise UserError("rerank: needs num_candidates, how many images to choose from")
    if num_candidates is not None and num_candidates < kept:
        raise UserError(f"num_candidates: found {num_candidates}, expected at least the {kept} images to keep")


def keep_best(drawn: DrawnImages, texts: Sequence[str | None], scorer: Scorer, keep: int) -> DrawnImages:
    """The `keep` images with the highest scores of each text, the highest first; equals keep their order.

    The candidates of a text lie side by side, as many for each.
    """
    candidates, best = len(drawn.rows) // len(texts), []
    for i, text in enumerate(texts):
        group = drawn.take(slice(i * candidates, (i + 1) * candidates))
        scores = scorer(group, text)
        order = scores.argsort(descending=True, stable=True)[:keep]
        best.append(replace(group.take(order), scores=scores[order]))
    return join(best)


def join(parts: Sequence[DrawnImages]) -> DrawnImages:
    """All images, one part after the other; either all parts have scores, or none has."""
    codes = torch.cat([part.tokens.codes for part in parts])
    tokens = GenerationOutput(codes, torch.cat([part.tokens.logprobs for part in parts]))
    scores = [part.scores for part in parts if part.scores is not None]
    rows, images = torch.cat([part.rows for part in parts]), torch.cat([part.images for part in parts])
    return DrawnImages(rows, images, tokens, torch.cat(scores) if scores else None)
