"""The condition of a conditional VAE: the label of an image, embedded once, given to layers of encoder and decoder.

A new kind is a member of the union and a `case` in the functions below, from which backbones take their layers.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tokenizer.options import TRAINING_ONLY, Options


class _LabelOptions(Options):
    """num_classes: labels are 0 to num_classes - 1, and -1 for none. dim: numbers in the embedding of a label.

    dropout: share of labels that training leaves out, so that the model also learns to do without.
    """

    num_classes: int = Field(ge=1, examples=[3])
    dim: int = Field(default=32, ge=1)
    dropout: Annotated[float, TRAINING_ONLY] = Field(default=0.0, ge=0, lt=1)


class ConcatenationConfig(_LabelOptions):
    """The embedding joins the input of encoder and decoder as further channels (Sohn et al. 2015, NeurIPS)."""

    kind: Literal["concatenation"] = "concatenation"


class FilmConfig(_LabelOptions):
    """The embedding scales and shifts the channels of every hidden layer (Perez et al. 2018, arXiv 1709.07871)."""

    kind: Literal["film"] = "film"


class ConditionalNormConfig(_LabelOptions):
    """The embedding gives gain and bias of normalisation layers (Dumoulin et al. 2017, arXiv 1610.07629).

    Those of the residual blocks become conditional; networks without any get a layer norm after every hidden layer.
    """

    kind: Literal["conditional_norm"] = "conditional_norm"


ConditionConfig = Annotated[ConcatenationConfig | FilmConfig | ConditionalNormConfig, Field(discriminator="kind")]


class LabelEmbedding(nn.Module):
    """Labels -> embeddings. The last row stands for "no label"; it begins at zero.

    It learns from images without a label, from `dropout`, and under a VampPrior from the learned images, which have no
    label. Where training has none of these it stays zero.
    """

    def __init__(self, config: ConditionConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_classes + 1, config.dim)
        with torch.no_grad():
            self.embedding.weight[-1] = 0

    def forward(self, labels: Tensor | None, count: int) -> Float[Tensor, "b dim"]:
        """`labels` (b,) of b = `count` images; -1 or None: no label.

        Raises ValueError for another number of labels, for labels that are no integers, and for one outside
        [-1, num_classes). The last is checked on the CPU only: an accelerator would have to be waited for.
        """
        none, weight = self.config.num_classes, self.embedding.weight
        if labels is None:
            labels = torch.full((count,), -1, device=weight.device)
        self._check(labels, count)
        labels = labels.to(weight.device).long()
        rows = torch.where(labels < 0, none, labels)
        if self.training and self.config.dropout:
            dropped = torch.rand(count, device=weight.device) < self.config.dropout
            rows = torch.where(dropped, none, rows)
        return self.embedding(rows)

    def _check(self, labels: Tensor, count: int) -> None:
        if tuple(labels.shape) != (count,) or labels.is_floating_point():
            raise ValueError(f"labels: found {labels.dtype} of shape {tuple(labels.shape)}, expected {count} integers")
        if labels.device.type == "cpu" and count:
            low, high = (int(bound) for bound in labels.aminmax())
            if low < -1 or high >= self.config.num_classes:
                raise ValueError(
                    f"labels run from {low} to {high}, expected 0 to {self.config.num_classes - 1}, or -1 for none"
                )


class Concatenate(nn.Module):
    """(b, c, ...), (b, dim) -> (b, c + dim, ...): the embedding is the same at every position."""

    takes_condition = True

    def forward(self, x: Float[Tensor, "b c *grid"], condition: Float[Tensor, "b dim"]) -> Tensor:
        return torch.cat((x, _at_every_position(condition, x).expand(-1, -1, *x.shape[2:])), dim=1)


class Film(nn.Module):
    """x * (1 + gamma) + beta, where gamma and beta of each channel are linear in the embedding (FiLM, equation 2)."""

    takes_condition = True

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(dim, 2 * channels)

    def forward(self, x: Float[Tensor, "b c *grid"], condition: Float[Tensor, "b dim"]) -> Float[Tensor, "b c *grid"]:
        gamma, beta = _at_every_position(self.linear(condition), x).chunk(2, dim=1)
        return x * (1 + gamma) + beta


class ConditionalNorm(nn.Module):
    """Normalisation over groups of channels (one group: layer norm), with gain and bias by the embedding."""

    takes_condition = True

    def __init__(self, dim: int, channels: int, groups: int = 1):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6, affine=False)
        self.film = Film(dim, channels)

    def forward(self, x: Float[Tensor, "b c *grid"], condition: Float[Tensor, "b dim"]) -> Float[Tensor, "b c *grid"]:
        return self.film(self.norm(x), condition)


def input_layers(condition: ConditionConfig | None) -> list[nn.Module]:
    """What stands before the first layer of a network."""
    return [Concatenate()] if isinstance(condition, ConcatenationConfig) else []


def input_channels(condition: ConditionConfig | None) -> int:
    """How many channels `input_layers` add."""
    return condition.dim if isinstance(condition, ConcatenationConfig) else 0


def film_layers(condition: ConditionConfig | None, channels: int) -> list[nn.Module]:
    """What follows a hidden layer whose network has norms elsewhere."""
    return [Film(condition.dim, channels)] if isinstance(condition, FilmConfig) else []


def hidden_layers(condition: ConditionConfig | None, channels: int) -> list[nn.Module]:
    """What stands between a hidden layer and its nonlinearity in a network without norms."""
    match condition:
        case ConditionalNormConfig():
            return [ConditionalNorm(condition.dim, channels)]
        case _:
            return film_layers(condition, channels)


def norm_layer(condition: ConditionConfig | None, channels: int, groups: int) -> nn.Module:
    """The norm of a network that has norms."""
    match condition:
        case ConditionalNormConfig():
            return ConditionalNorm(condition.dim, channels, groups)
        case _:
            return nn.GroupNorm(groups, channels, eps=1e-6)


def _at_every_position(embedded: Float[Tensor, "b n"], x: Tensor) -> Tensor:
    """(b, n, 1, ...) with as many dimensions as x."""
    return embedded.view(*embedded.shape, *[1] * (x.ndim - 2))
