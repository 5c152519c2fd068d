"""Next-token cross-entropy, and what it says of whole images."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from prior.token_prior import PriorConfig, TokenPrior


class PriorPhase(nn.Module):
    """The prior as a phase of the training loop: `forward(batch, step) -> (loss, metrics)`."""

    def __init__(self, model: TokenPrior):
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor], step: int = 0) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean cross-entropy in nats per code of `batch["codes"]` (b, *axes), given `batch["label"]` (b,): -1 where
        an image has none.

        A prior with captions is given `batch["caption"]` (b, length) instead: -1 where a caption has no word. Its loss
        is `text_weight` times the cross-entropy per position of the caption and 1 - `text_weight` times the one per
        code (arXiv 2102.12092, section 2.2). The first position of a caption is given, not predicted.

        Raises ValueError when a conditional prior finds no condition in the batch; an unconditional one ignores it.
        """
        config, codes, condition = self.model.config, batch["codes"], self._condition(batch)
        if not config.text_weight or config.vocabulary.condition.length == 1:
            loss = _image_loss(self.model(codes, condition), codes)
            return loss, _metrics(loss, loss)
        prefix = self.model.prefix(condition, len(codes), codes.device)
        text_logits, code_logits = self.model.stream_logits(prefix, codes)
        text_loss, image_loss = text_cross_entropy(text_logits, prefix, config), _image_loss(code_logits, codes)
        loss = config.text_weight * text_loss + (1 - config.text_weight) * image_loss
        return loss, _metrics(loss, image_loss) | {"text_loss": text_loss.detach()}

    def _condition(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        vocabulary = self.model.vocabulary
        if not vocabulary.conditional:
            return None
        name = vocabulary.condition.name
        if name not in batch:
            raise ValueError(f"a prior conditional on {name!r} needs it in each batch, found {sorted(batch)}")
        return batch[name]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the prior, by name."""
        return dict(self.model.named_parameters())

    def after_step(self, step: int) -> None:
        """Nothing to do."""


def text_cross_entropy(
    logits: Float[Tensor, "b c1 w"], prefix: Int[Tensor, "b c"], config: PriorConfig
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats per predicted position of the condition `prefix`, by its logits.

    Without `predict_pads` a position chooses from the words alone, and the mean is over those that hold one.
    """
    words = config.vocabulary.condition.size
    targets = prefix[:, 1:].clamp(max=words)  # a position's own pad has the last logit
    if config.predict_pads:
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    total = F.cross_entropy(
        logits[..., :words].flatten(0, 1).float(), targets.flatten(), ignore_index=words, reduction="sum"
    )
    return total / (targets < words).sum().clamp(min=1)


def _image_loss(logits: Float[Tensor, "b n k"], codes: Integer[Tensor, " b *axes"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten().long())


def _metrics(loss: Float[Tensor, ""], image_loss: Float[Tensor, ""]) -> dict[str, Tensor]:
    return {"loss": loss.detach(), "bits_per_token": image_loss.detach() / math.log(2)}


def sequence_logprobs(
    prior: TokenPrior, codes: Integer[Tensor, " b *axes"], condition: Int[Tensor, "b ..."] | None = None
) -> Float[Tensor, "b n"]:
    """log p(code | condition, codes before it) of every code, in nats, in evaluation mode."""
    with prior.evaluation_mode():
        logprobs = torch.log_softmax(prior(codes, condition).float(), dim=-1)
        return logprobs.gather(-1, codes.flatten(1)[..., None].long()).squeeze(-1)


def sequence_bits(
    prior: TokenPrior, codes: Integer[Tensor, " b *axes"], condition: Int[Tensor, "b ..."] | None = None
) -> Float[Tensor, " b"]:
    """-log2 p(codes | condition): the bits of each whole image."""
    return sequence_logprobs(prior, codes, condition).sum(-1) / -math.log(2)
