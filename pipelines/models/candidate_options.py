"""How many candidates are drawn, how many of them are kept, and by what they are chosen."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LIKELIHOOD, LIKELIHOOD_RATIO, CLIP = "likelihood", "likelihood_ratio", "clip:"
NAMED = f"{LIKELIHOOD!r}, {LIKELIHOOD_RATIO!r}, 'clip:FOLDER'"


def is_named(rerank: str) -> bool:
    """Whether a text is one of `NAMED`."""
    return rerank in (LIKELIHOOD, LIKELIHOOD_RATIO) or (rerank.startswith(CLIP) and rerank != CLIP)


class CandidateOptions(BaseModel):
    """So many images are drawn of each prompt or label, and the best of them kept.

    `rerank` says by what they are chosen. "likelihood", log p(image | condition), prefers what the prior is surest of:
    take it first. "likelihood_ratio", log p(image | condition) - log p(image), prefers what fits this condition alone,
    odd and blurred images too, which are unlikely under any: take it where candidates are good images that ignore their
    condition; it needs condition dropout. "clip:" and a folder or a repository on the hub: take it where CLIP knows
    such images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    num_candidates: int = Field(ge=1, le=2**16)
    keep: int = Field(default=1, ge=1)
    rerank: str = LIKELIHOOD

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_candidates < self.keep:
            raise ValueError(f"num_candidates is {self.num_candidates}, expected at least keep, {self.keep}")
        if not is_named(self.rerank):
            raise ValueError(f"rerank: found {self.rerank!r}, expected one of {NAMED}")
        return self
