"""Which candidates of a prompt are kept: by the prior's own likelihood, by CLIP, or by any function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.models.rerank_clip import ClipScorer
from prior import GenerationOutput, TokenPrior, likelihood_ratio

LIKELIHOOD, CLIP = "likelihood", "clip:"

ScoreFunction = Callable[[Float[Tensor, "n c h w"], str | None], Tensor | Sequence[float]]
"""Scores of n images in [0, 1] for their prompt, or the name of their label: the higher the better."""

Rerank = str | ScoreFunction
"""`likelihood`, `clip:` and a folder or a repository on the hub, or a function."""


@dataclass(frozen=True)
class Candidates:
    """Images in [0, 1] of one condition, as they were drawn. `text` is the prompt or the name of the label."""

    images: Float[Tensor, "n c h w"]
    drawn: GenerationOutput
    text: str | None


class Scorer(Protocol):
    """weights: the files beside the image pipeline's own that decide the scores."""

    weights: Sequence[Path]

    def __call__(self, candidates: Candidates) -> Float[Tensor, " n"]: ...


class LikelihoodScorer:
    """log p(image | condition) - log p(image) in nats, by the prior that drew the images."""

    weights: Sequence[Path] = ()

    def __init__(self, prior: TokenPrior):
        self.prior = prior

    def __call__(self, candidates: Candidates) -> Float[Tensor, " n"]:
        return likelihood_ratio(self.prior, candidates.drawn).cpu()


class TextScorer:
    """CLIP's score, or that of a user's function, of each image for the text."""

    def __init__(self, function: ScoreFunction, weights: Sequence[Path] = ()):
        self.function, self.weights = function, weights

    def __call__(self, candidates: Candidates) -> Float[Tensor, " n"]:
        scores = torch.as_tensor(self.function(candidates.images, candidates.text), dtype=torch.float32).detach().cpu()
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
            the prior never saw the null condition, which `likelihood` needs; as `ClipScorer`.
    """
    if callable(rerank):
        return TextScorer(rerank)
    if rerank != LIKELIHOOD and not rerank.startswith(CLIP):
        raise UserError(f"rerank: found {rerank!r}, expected 'likelihood', 'clip:FOLDER' or a function")
    if not conditional:
        raise UserError(f"rerank: {rerank!r} compares images with their prompt or label, and there is none")
    if rerank != LIKELIHOOD:
        clip = ClipScorer(rerank.removeprefix(CLIP), prior.device)
        return TextScorer(clip, clip.weights)
    if not prior.can_be_guided:
        raise UserError(
            "rerank: 'likelihood' needs the likelihood of images without a condition, and this prior was trained with "
            "condition_dropout=0, so that it never saw the null condition; expected 'clip:FOLDER' or a function"
        )
    return LikelihoodScorer(prior)


def best_first(scores: Float[Tensor, " n"], count: int) -> Int[Tensor, " k"]:
    """Indices of the `count` highest scores, the highest first; equals keep their order."""
    return scores.argsort(descending=True, stable=True)[:count]
