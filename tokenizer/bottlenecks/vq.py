"""Vector quantization with codebooks learned by moving averages; residual with more than one."""

from functools import reduce
from inspect import signature
from operator import add
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Integer
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from tokenizer.bottlenecks.codebook import Codebook
from tokenizer.bottlenecks.contract import MAX_CODES, BottleneckOutput, NearestLatent, check_codes
from tokenizer.options import TRAINING_ONLY, Options
from tokenizer.straight_through import rotation_trick, straight_through

CODEBOOK_OPTIONS = set(signature(Codebook).parameters)


class VQConfig(Options):
    """`num_quantizers` codebooks of `num_codes` vectors of `dim` channels.

    decay, eps: of the moving averages and of their Laplace smoothing.
    kmeans_init: take the first codebook from the first training batch.
    dead_code_threshold: restart a code whose moving count of vectors per step (all ranks together) is lower. Keep it
        well under the fair share, vectors per step / num_codes. None never restarts.
    restart_every: steps between two searches for such codes.
    """

    continuous: ClassVar[bool] = False
    random: ClassVar[bool] = False
    kind: Literal["vq"] = "vq"
    num_codes: int = Field(default=512, ge=1, le=MAX_CODES)
    dim: int = Field(default=64, ge=1)
    num_quantizers: int = Field(default=1, ge=1, le=256, examples=[3])
    decay: Annotated[float, TRAINING_ONLY] = Field(default=0.99, ge=0, lt=1)
    eps: Annotated[float, TRAINING_ONLY] = Field(default=1e-5, gt=0)
    kmeans_init: Annotated[bool, TRAINING_ONLY] = True
    dead_code_threshold: Annotated[float | None, TRAINING_ONLY] = Field(default=None, gt=0, examples=[1.0])
    restart_every: Annotated[int, TRAINING_ONLY] = Field(default=10, ge=1)
    distance: Literal["euclidean", "cosine"] = "euclidean"
    gradient_estimator: Annotated[Literal["straight_through", "rotation"], TRAINING_ONLY] = "straight_through"

    @model_validator(mode="after")
    def _residuals_have_length(self):
        if self.num_quantizers > 1 and self.distance == "cosine":
            raise ValueError(
                f'num_quantizers {self.num_quantizers} needs distance "euclidean", got "cosine": residuals have lengths'
            )
        return self


class VQ(NearestLatent, nn.Module):
    """VQ-VAE's bottleneck (arXiv 1711.00937), its codebook by moving averages (appendix A.1).

    With q > 1 quantizers each codebook quantizes what the ones before it left over, and z is their sum (RQ-VAE, arXiv
    2203.01941, section 3.1). Under the cosine distance h is first scaled to unit length, and so is every code.

    The term "commitment" sums |h - sg(z)|² over positions and channels of an image, and over the partial sums z of the
    quantizers (RQ-VAE, equation 6).
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.in_channels = self.dim = config.dim
        self.num_codes, self.num_quantizers = config.num_codes, config.num_quantizers
        estimators = {"straight_through": straight_through, "rotation": rotation_trick}
        self.estimate_gradient = estimators[config.gradient_estimator]
        self.codebooks = nn.ModuleList(
            Codebook(**config.model_dump(include=CODEBOOK_OPTIONS)) for _ in range(config.num_quantizers)
        )

    @property
    def _codebooks(self) -> list[Codebook]:
        """`codebooks` for the type checker, which sees plain modules in a ModuleList."""
        return [codebook for codebook in self.codebooks if isinstance(codebook, Codebook)]

    @property
    def embedding(self) -> Float[Tensor, "q k d"]:
        """The vectors of all codebooks."""
        return torch.stack([codebook.embedding for codebook in self._codebooks])

    def forward(self, h: Float[Tensor, "b d h w"], step: int = 0) -> BottleneckOutput:
        b, _, height, width = h.shape
        rows = self.project(h).permute(0, 2, 3, 1).reshape(-1, self.dim).contiguous()
        residual, commitment, found = rows, rows.new_zeros(b), []
        for codebook in self._codebooks:
            found.append(codebook(residual.detach(), step))
            residual = residual - found[-1].vectors
            commitment = commitment + residual.view(b, -1).square().sum(1)
        z = reduce(add, [each.vectors for each in found])
        if rows.requires_grad:
            z = self.estimate_gradient(rows, z)
        nonfinite = found[0].nonfinite
        return BottleneckOutput(
            z.view(b, height, width, self.dim).permute(0, 3, 1, 2),
            torch.stack([each.codes for each in found], dim=-1).view(b, height, width, self.num_quantizers),
            terms={"commitment": commitment[:, None]},
            metrics={} if nonfinite is None else {"nonfinite_vectors": nonfinite},
        )

    def project(self, h: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """float32 features, of unit length under the cosine distance."""
        h = h.float()
        return normalize(h, dim=1, eps=1e-6) if self.config.distance == "cosine" else h

    def codes_to_latents(self, codes: Integer[Tensor, "b h w q"]) -> Float[Tensor, "b d h w"]:
        """The latents that `forward` gives these codes in evaluation: the sum of their vectors over the quantizers.

        Raises ValueError when a code is out of range.
        """
        parts = zip(self._codebooks, check_codes(codes, self.num_codes).unbind(-1), strict=True)
        return reduce(add, [codebook.lookup(part) for codebook, part in parts]).permute(0, 3, 1, 2)

    def encode_state(self) -> dict[str, Tensor]:
        return {"embedding": self.embedding}

    def after_step(self, step: int) -> None:
        for codebook in self._codebooks:
            codebook.after_step()
