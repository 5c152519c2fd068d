"""How many candidates are drawn, how many of them are kept, and by what they are chosen."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LIKELIHOOD, CLIP = "likelihood", "clip:"


class CandidateOptions(BaseModel):
    """So many images are drawn of each prompt or label, and the best of them kept.

    `rerank`: "likelihood", or "clip:" and a folder or a repository on the hub.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    num_candidates: int = Field(ge=1, le=2**16)
    keep: int = Field(default=1, ge=1)
    rerank: str = LIKELIHOOD

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_candidates < self.keep:
            raise ValueError(f"num_candidates is {self.num_candidates}, expected at least keep, {self.keep}")
        if self.rerank != LIKELIHOOD and not self.rerank.startswith(CLIP):
            raise ValueError(f"rerank: found {self.rerank!r}, expected 'likelihood' or 'clip:FOLDER'")
        return self
