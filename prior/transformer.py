"""The network: x-transformers' blocks in a stack of our own, with a mask per layer."""

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn

from prior.attention import Attention, FullAttention, LayerMasks, Mask, attention_bias
from prior.positions import AxialPositions, rotary_angles
from prior.vocabulary import Vocabulary


class TransformerConfig(BaseModel):
    """Pre-norm blocks of causal attention and SwiGLU, normalised by RMSNorm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: PositiveInt = 256
    depth: int = Field(default=6, gt=0, le=1000)
    heads: PositiveInt = 4
    head_dim: PositiveInt = 64
    ff_mult: float = Field(default=4.0, gt=0, le=1000)
    """Width of a plain feed-forward of the same size; SwiGLU's is 2/3 of it (arXiv 2002.05202), in multiples of 32."""
    positions: Literal["learned", "rotary"] = "learned"
    """learned: embeddings of row + column (+ quantizer); rotary: of the place in the sequence."""
    attention: Attention = FullAttention()
    """Which positions each layer attends to."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    flash: bool = True
    """Attention by torch's scaled_dot_product_attention; False spells it out."""

    @property
    def ff_dim(self) -> int:
        return math.ceil(self.dim * self.ff_mult * 2 / 3 / 32) * 32

    @model_validator(mode="after")
    def _check_head_dim(self) -> "TransformerConfig":
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"positions='rotary' needs an even head_dim, got {self.head_dim}")
        return self


class Block(nn.Module):
    """Pre-norm causal attention, then a pre-norm SwiGLU feed-forward, each added to its input."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        # The gain is 1 + g: weight decay draws it to 1.
        self.attention_norm = _x_transformers().RMSNorm(config.dim, unit_offset=True)
        self.attention: Any = _x_transformers().Attention(
            config.dim,
            dim_head=config.head_dim,
            heads=config.heads,
            causal=True,
            flash=config.flash,
            dropout=config.dropout,
            project_out=True,
        )
        self.feedforward_norm = _x_transformers().RMSNorm(config.dim, unit_offset=True)
        self.feedforward: Any = _x_transformers().FeedForward(
            config.dim,
            mult=(config.ff_dim + 0.5) / config.dim,  # x-transformers floors dim * mult
            glu=True,
            swish=True,
            no_bias=True,
            dropout=config.dropout,
        )
        self.feedforward.ff[0].proj.register_parameter("bias", None)  # no_bias leaves this one

    def forward(
        self,
        x: Float[Tensor, "b m d"],
        angles: Float[Tensor, "1 m e"] | None = None,
        bias: Float[Tensor, "m m"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """`bias` is added to the logits of attention; it hides later positions too. None: it hides nothing else."""
        rotary = None if angles is None else (angles, 1.0)
        causal = bias is None
        x = x + self.attention(self.attention_norm(x), attn_bias=bias, causal=causal, rotary_pos_emb=rotary)
        return x + self.feedforward(self.feedforward_norm(x))


class Transformer(nn.Module):
    """From ids to the hidden state of each position, and from there to logits of the ids that the next may take."""

    def __init__(self, config: TransformerConfig, vocabulary: Vocabulary, masks: Sequence[Mask]):
        super().__init__()
        self.vocabulary = vocabulary
        self.token_embedding = nn.Embedding(vocabulary.size, config.dim)
        nn.init.kaiming_normal_(self.token_embedding.weight)
        self.positions = AxialPositions(config.dim, vocabulary) if config.positions == "learned" else None
        self.rotary_dim = config.head_dim if config.positions == "rotary" else None
        self.dropout = nn.Dropout(config.dropout)
        self.masks = LayerMasks(masks)
        self.blocks = nn.ModuleList(Block(config) for _ in masks)
        self.final_norm = _x_transformers().RMSNorm(config.dim, unit_offset=True)
        self.to_logits = nn.Linear(config.dim, vocabulary.size - vocabulary.first_predicted_id, bias=False)

    def forward(self, tokens: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
        """The normalised hidden state after each of the first m tokens."""
        x = self.token_embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.table()[: x.shape[1]]
        x = self.dropout(x)
        angles = rotary_angles(x.shape[1], self.rotary_dim, x.device)[None] if self.rotary_dim else None
        for block, bias in zip(self.blocks, self._biases(x), strict=True):
            x = block(x, angles, bias)
        return self.final_norm(x)

    def _biases(self, x: Float[Tensor, "b m d"]) -> list[Float[Tensor, "m m"] | None]:
        """What each layer adds to its logits of attention, in the dtype in which these are computed."""
        device, length = x.device.type, x.shape[1]
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        biases = [attention_bias(mask[:length, :length], dtype) for mask in self.masks.distinct]
        return self.masks.for_layers(biases)

    def text_logits(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n w"]:
        """Logits of positions 1 to n of the condition; `hidden` are the states that predict them.

        A position chooses from the values of the segment and, where it has pads, from its own pad, which comes last.
        """
        condition, weight = self.vocabulary.condition, self.to_logits.weight
        logits = F.linear(hidden, weight[: condition.size])
        if not condition.pads:
            return logits
        pads = weight[condition.size : condition.num_ids][1:]  # the first position is given
        return torch.cat([logits, (hidden * pads).sum(-1, keepdim=True)], dim=-1)

    def code_heads(self) -> list[Float[Tensor, "q k d"]]:
        """The maps from hidden states to logits: for each level of codes, one matrix for each quantizer."""
        levels = self.vocabulary.codes
        weight = self.to_logits.weight[-self.vocabulary.num_code_ids :]
        parts = zip(weight.split([level.num_ids for level in levels]), levels, strict=True)
        return [part.unflatten(0, (level.num_quantizers, level.size)) for part, level in parts]

    def code_logits(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n k"]:
        """Logits of the codes of whole images; `hidden` are the states that predict them.

        k is the size of the largest level. Logits beyond the codes of a position's own level are -inf.
        """
        most, lengths = self.vocabulary.most_codes, [level.length for level in self.vocabulary.codes]
        parts = zip(hidden.split(lengths, dim=1), self.code_heads(), strict=True)
        levels = [_level_logits(part, heads) for part, heads in parts]
        if len(levels) == 1:
            return levels[0]
        return torch.cat([F.pad(level, (0, most - level.shape[-1]), value=-math.inf) for level in levels], dim=1)


def _level_logits(hidden: Float[Tensor, "b n d"], heads: Float[Tensor, "q k d"]) -> Float[Tensor, "b n k"]:
    """Logits of the codes of one level."""
    if len(heads) == 1:
        return F.linear(hidden, heads[0])
    grouped = rearrange(hidden, "b (c q) d -> q (b c) d", q=len(heads))
    return rearrange(torch.bmm(grouped, heads.mT), "q (b c) k -> b (c q) k", b=len(hidden))


@cache
def _x_transformers() -> Any:  # it is untyped
    """The library, imported when a network is built: it takes a second, and whoever reads options should not wait."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
        from x_transformers import x_transformers
    return x_transformers
