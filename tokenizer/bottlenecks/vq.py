"""Vector quantization with codebooks learned by moving averages; residual when deeper than one."""

from functools import reduce
from operator import add
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from tokenizer.bottlenecks.codebook import Codebook
from tokenizer.bottlenecks.result import Bottlenecked
from tokenizer.straight_through import rotation_trick, straight_through


class VQConfig(BaseModel):
    """`depth` codebooks of `num_codes` vectors of `dim` channels.

    decay, eps: of the moving averages and of their Laplace smoothing.
    kmeans_init: take the first codebook from the first training batch.
    restart_below: restart a code whose moving count of vectors per step (all ranks together) is lower. Keep it well
        under the fair share, vectors per step / num_codes. None never restarts.
    restart_every: steps between two looks for such codes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["vq"] = "vq"
    num_codes: int = Field(default=512, ge=1)
    dim: int = Field(default=64, ge=1)
    depth: int = Field(default=1, ge=1)
    decay: float = Field(default=0.99, ge=0, lt=1)
    eps: float = Field(default=1e-5, gt=0)
    kmeans_init: bool = True
    restart_below: float | None = Field(default=None, gt=0)
    restart_every: int = Field(default=10, ge=1)
    distance: Literal["euclidean", "cosine"] = "euclidean"
    gradient: Literal["straight_through", "rotation"] = "straight_through"

    @model_validator(mode="after")
    def _residuals_have_length(self):
        if self.depth > 1 and self.distance == "cosine":
            raise ValueError(f'depth {self.depth} needs distance "euclidean", got "cosine": a residual has a length')
        return self


class VQ(nn.Module):
    """VQ-VAE's bottleneck (arXiv 1711.00937), its codebook by moving averages (appendix A.1).

    With depth q > 1 each codebook quantizes what the ones before it left over, and z is their sum (RQ-VAE, arXiv
    2203.01941, section 3.1). Under the cosine distance h is first scaled to unit length, and so is every code.

    The term "commitment" sums |h - sg(z)|² over positions and channels of an image, and over the partial sums z of the
    depths (RQ-VAE, equation 6).
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        self.features_in = self.dim = config.dim
        self.num_codes, self.depth = config.num_codes, config.depth
        self.unit_length = config.distance == "cosine"
        self.carry_gradient = {"straight_through": straight_through, "rotation": rotation_trick}[config.gradient]
        options = config.model_dump(
            include={"num_codes", "dim", "decay", "eps", "kmeans_init", "restart_below", "restart_every", "distance"}
        )
        self.codebooks = nn.ModuleList(Codebook(**options) for _ in range(config.depth))

    @property
    def _books(self) -> list[Codebook]:
        """`codebooks` for the type checker, to which a ModuleList holds just modules."""
        return [book for book in self.codebooks if isinstance(book, Codebook)]

    @property
    def embedding(self) -> Float[Tensor, "q k d"]:
        """The vectors of all codebooks."""
        return torch.stack([codebook.embedding for codebook in self._books])

    def forward(self, h: Float[Tensor, "b d h w"], step: int = 0) -> Bottlenecked:
        b, _, height, width = h.shape
        rows = h.permute(0, 2, 3, 1).reshape(-1, self.dim).float().contiguous()
        if self.unit_length:
            rows = normalize(rows, dim=-1, eps=1e-6)
        residual, commitment, levels = rows, rows.new_zeros(b), []
        for codebook in self._books:
            levels.append(codebook(residual.detach(), step))
            residual = residual - levels[-1].vectors
            commitment = commitment + residual.view(b, -1).square().sum(1)
        z = reduce(add, [level.vectors for level in levels])
        if rows.requires_grad:
            z = self.carry_gradient(rows, z)
        codes = torch.stack([level.codes for level in levels], dim=-1)
        return Bottlenecked(
            z.view(b, height, width, self.dim).permute(0, 3, 1, 2),
            codes.view(b, height, width, self.depth),
            {"commitment": commitment},
        )

    def codes_to_latents(self, codes: Int[Tensor, "b h w q"]) -> Float[Tensor, "b d h w"]:
        """The latents that `forward` gives these codes in evaluation: the sum of their vectors over the depth."""
        levels = zip(self._books, codes.unbind(-1), strict=True)
        return reduce(add, [codebook.lookup(level) for codebook, level in levels]).permute(0, 3, 1, 2)
