"""The prior: a causal transformer over a condition and codes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int, Integer
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from prior.attention import attention_masks
from prior.conditioning import condition_tokens, drop_condition
from prior.sequence import codes_to_tokens
from prior.transformer import Transformer, TransformerConfig
from prior.vocabulary import Vocabulary


class PriorConfig(BaseModel):
    """What a `TokenPrior` is built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: Vocabulary
    transformer: TransformerConfig = TransformerConfig()
    condition_dropout: float = Field(default=0.1, ge=0, le=1)
    """Probability that a training image's condition is replaced by the null condition, which guidance needs."""
    text_weight: float = Field(default=1 / 8, ge=0, lt=1)
    """Weight of the loss of the caption; the loss of the codes has the rest (arXiv 2102.12092, section 2.2). A prior
    without a caption has the loss of the codes alone."""
    predict_pads: bool = True
    """Whether the caption's loss counts pads. Otherwise it is the loss of the words, normalised by their number."""


class TokenPrior(nn.Module):
    """p(codes | condition), one code after another: level by level from the coarsest, in raster order, the quantizers
    of a cell one after the other.
    """

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        transformer = config.transformer
        masks = attention_masks(transformer.attention, config.vocabulary, transformer.depth)
        self.network = Transformer(transformer, config.vocabulary, masks)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.config.vocabulary

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def can_be_guided(self) -> bool:
        """Whether training has seen both conditions and the null condition, between which guidance extrapolates."""
        return self.vocabulary.conditional and self.config.condition_dropout > 0

    def forward(
        self, codes: Integer[Tensor, " b *axes"], condition: Int[Tensor, "b ..."] | None = None
    ) -> Float[Tensor, "b n k"]:
        """Logits of the code at every position given the condition and the codes before it; -inf for codes that the
        level of the position does not have.

        In training mode a condition is dropped with probability `condition_dropout`. Raises ValueError for another
        grid, for codes or conditions out of range, and for a condition given to an unconditional prior.
        """
        prefix = self.prefix(condition, len(codes), codes.device)
        return self.logits(prefix, codes_to_tokens(codes, self.vocabulary)[:, :-1])

    def prefix(self, condition: Int[Tensor, "b ..."] | None, batch: int, device: torch.device) -> Int[Tensor, "b c"]:
        """The ids of each image's condition, dropped in training mode; raises ValueError as `forward`."""
        prefix = condition_tokens(self.vocabulary, condition, batch, device)
        if self.training and condition is not None:
            return drop_condition(prefix, self.vocabulary, self.config.condition_dropout)
        return prefix

    def logits(self, prefix: Int[Tensor, "b c"], tokens: Int[Tensor, "b m"]) -> Float[Tensor, "b n k"]:
        """Logits of all n codes, given the ids of the condition and of the first m = n - 1 codes."""
        hidden = self.network(torch.cat([prefix, tokens], dim=1))
        return self.network.code_logits(hidden[:, prefix.shape[1] - 1 :])

    def stream_logits(
        self, prefix: Int[Tensor, "b c"], codes: Integer[Tensor, " b *axes"]
    ) -> tuple[Float[Tensor, "b c1 w"], Float[Tensor, "b n k"]]:
        """Logits of the condition after its first position, and of all codes: what one pass says of both.

        The last of the w logits is that of the position's own pad, where the condition has pads.
        """
        hidden = self.network(torch.cat([prefix, codes_to_tokens(codes, self.vocabulary)[:, :-1]], dim=1))
        text, image = hidden.tensor_split([prefix.shape[1] - 1], dim=1)
        return self.network.text_logits(text), self.network.code_logits(image)

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Evaluation mode without gradients; the mode is restored afterwards."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)
