"""What a prior is conditioned on, as a recipe says it."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Condition = Literal["none", "label", "caption"]


class CaptionOptions(BaseModel):
    """How a prior reads captions."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    vocab_size: int = Field(
        default=16_384,
        ge=256,
        le=2**20,
        description="the most tokens that byte-pair encoding learns from the training captions",
    )
    max_length: int = Field(
        default=64, ge=2, le=4096, description="tokens of a caption; shorter ones are padded, longer ones cut off"
    )
    bpe_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="share of the merges that training leaves out (arXiv 1910.13267)"
    )
    text_weight: float = Field(
        default=1 / 8, ge=0, lt=1, description="weight of the loss of the caption; that of the image has the rest"
    )
    predict_pads: bool = Field(default=True, description="whether the loss of the caption counts its padding")


@dataclass(frozen=True)
class Conditioning:
    """Whether a prior reads labels or captions of its tokens, how it reads captions, and how often training drops what
    it reads.
    """

    condition: Condition
    dropout: float
    caption: CaptionOptions = field(default_factory=CaptionOptions)
