"""The network: a causal transformer of x-transformers behind about ten knobs."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from x_transformers import Decoder, TransformerWrapper
from x_transformers.x_transformers import GLU

from prior.conditioning import condition_tokens, drop_condition
from prior.sequence import codes_to_tokens
from prior.vocabulary import Vocabulary


class TransformerConfig(BaseModel):
    """Pre-norm blocks of causal attention and SwiGLU, normalised by RMSNorm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: PositiveInt = 256
    depth: PositiveInt = 6
    heads: PositiveInt = 4
    head_dim: PositiveInt = 64
    ff_mult: PositiveFloat = 4.0
    """Width of a plain feed-forward of the same size; SwiGLU's is 2/3 of it (arXiv 2002.05202), in multiples of 32."""
    positions: Literal["learned", "rotary"] = "learned"
    """learned: embeddings of row + column (+ depth); rotary: of the place in the sequence."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    flash: bool = True

    @property
    def ff_dim(self) -> int:
        return math.ceil(self.dim * self.ff_mult * 2 / 3 / 32) * 32

    @model_validator(mode="after")
    def _rotates_in_pairs(self) -> "TransformerConfig":
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"positions='rotary' needs an even head_dim, got {self.head_dim}")
        return self


class PriorConfig(BaseModel):
    """What a `TokenPrior` is built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: Vocabulary
    transformer: TransformerConfig = TransformerConfig()
    condition_dropout: float = Field(default=0.1, ge=0, le=1)
    """Probability that a training image's label is replaced by the null condition, which guidance needs."""


class GridPositions(nn.Module):
    """Row + column (+ depth) embedding of the place that each position predicts."""

    def __init__(self, dim: int, grid: tuple[int, int, int]):
        super().__init__()
        self.axes = nn.ModuleList(nn.Embedding(size, dim) for size in grid if size > 1 or grid == (1, 1, 1))
        for axis in self.axes:
            nn.init.normal_(axis.weight, std=dim**-0.5)  # pyright: ignore[reportArgumentType]
        indices = torch.cartesian_prod(*(torch.arange(axis.num_embeddings) for axis in self.axes))  # pyright: ignore
        self.indices: Tensor
        self.register_buffer("indices", indices.reshape(-1, len(self.axes)), persistent=False)

    def table(self) -> Float[Tensor, "n d"]:
        """The embedding of every place of the grid, in raster order."""
        return torch.stack([axis(index) for axis, index in zip(self.axes, self.indices.unbind(-1), strict=True)]).sum(0)

    def forward(
        self,
        x: Int[Tensor, "b m"],
        pos: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        offset: int = 0,
    ) -> Float[Tensor, "m d"]:
        """x-transformers' call of an absolute position embedding; only whole prefixes are ever passed."""
        return self.table()[offset : offset + x.shape[1]]


class TokenPrior(nn.Module):
    """p(codes | label), one code after another in raster order, depth minor."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        vocabulary, transformer = config.vocabulary, config.transformer
        self.network: Any = TransformerWrapper(  # Any: x-transformers is untyped
            num_tokens=vocabulary.size,
            max_seq_len=vocabulary.length,
            logits_dim=vocabulary.num_codes,  # the position decides the depth
            use_abs_pos_emb=False,
            emb_dropout=transformer.dropout,
            attn_layers=Decoder(
                dim=transformer.dim,
                depth=transformer.depth,
                heads=transformer.heads,
                use_rmsnorm=True,
                rotary_pos_emb=transformer.positions == "rotary",
                rotary_emb_dim=transformer.head_dim,
                attn_dim_head=transformer.head_dim,
                attn_flash=transformer.flash,
                attn_dropout=transformer.dropout,
                attn_project_out=True,
                ff_glu=True,
                ff_swish=True,
                ff_mult=(transformer.ff_dim + 0.5) / transformer.dim,  # x-transformers floors dim * mult
                ff_no_bias=True,
                ff_dropout=transformer.dropout,
                verbose=False,
            ),
        )
        for block in self.network.modules():
            if isinstance(block, GLU):
                block.proj.register_parameter("bias", None)  # no linear map here has one; x-transformers has no knob
        if transformer.positions == "learned":
            self.network.pos_emb = GridPositions(transformer.dim, vocabulary.grid)
            self.network.can_cache_kv_outside_max_seq_len = False

    @property
    def vocabulary(self) -> Vocabulary:
        return self.config.vocabulary

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, codes: Int[Tensor, "b h w q"], labels: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b n k"]:
        """Logits of the code at every position given the label and the codes before it.

        In training mode a label is dropped with probability `condition_dropout`. Raises ValueError for a foreign grid,
        for codes or labels out of range, and for labels given to an unconditional prior.
        """
        prefix = condition_tokens(self.vocabulary, labels, len(codes), codes.device)
        if self.training and labels is not None:
            prefix = drop_condition(prefix, self.vocabulary, self.config.condition_dropout)
        return self.logits(prefix, codes_to_tokens(codes, self.vocabulary)[:, :-1])

    def logits(self, prefix: Int[Tensor, "b 1"], tokens: Int[Tensor, "b m"]) -> Float[Tensor, "b m+1 k"]:
        """Logits of the first m + 1 codes, given the condition token and the first m code tokens."""
        return self.network(torch.cat([prefix, tokens], dim=1))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients; the mode comes back afterwards."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)
