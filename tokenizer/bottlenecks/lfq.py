"""Lookup-free quantization: the sign of each channel is one bit of the code; there is no codebook to learn."""

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Integer
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks.contract import MAX_CODES, BottleneckOutput, NearestLatent, check_codes, count_nonfinite
from tokenizer.options import TRAINING_ONLY, Options
from tokenizer.straight_through import straight_through

GROUP = 8  # bits whose joint distribution is formed: 256 probabilities per position


class LFQConfig(Options):
    """`dim` channels of one bit each, hence 2^dim codes.

    temperature: of the soft assignment to codes inside the entropy term. Implementations differ, from 0.01 to 1; at 1 a
        feature of length 1 is 98 % certain of its bit.
    """

    continuous: ClassVar[bool] = False
    random: ClassVar[bool] = False
    kind: Literal["lfq"] = "lfq"
    dim: int = Field(default=10, ge=1, le=MAX_CODES.bit_length() - 1)
    temperature: Annotated[float, TRAINING_ONLY] = Field(default=1.0, gt=0, examples=[0.1])


class LFQ(NearestLatent, nn.Module):
    """Lookup-free quantization (MAGVIT-v2, arXiv 2310.05737, section 3.1).

    z is the sign of h (-1 where h <= 0), and the code is the binary number of the channels above 0, the first channel
    least significant. The term "commitment" sums |h - sg(z)|² over each image. The batch term "entropy" is
    E[H(q(c | h))] - H(E[q(c | h)]) in nats, times the positions of an image: minimised, it makes each position sure of
    its code, and codes equally frequent. q is the softmax of -|h - c|² / temperature over all codes c.

    The mean is taken over the positions of one process's batch. Beyond 8 channels the second entropy is the sum over
    groups of 8, an upper bound that is exact when groups are independent.
    """

    basis: Tensor

    def __init__(self, config: LFQConfig):
        super().__init__()
        self.config = config
        self.in_channels = self.dim = config.dim
        self.num_codes, self.num_quantizers = 2**config.dim, 1
        self.register_buffer("basis", 2 ** torch.arange(config.dim), persistent=False)

    def forward(self, h: Float[Tensor, "b d h w"], step: int = 0) -> BottleneckOutput:
        h = h.float()
        bits = h > 0
        signs = torch.where(bits, 1.0, -1.0)
        codes = (bits.movedim(1, -1) * self.basis).sum(-1, keepdim=True)
        return BottleneckOutput(
            straight_through(h, signs) if h.requires_grad else signs,
            codes,
            terms={"commitment": (h - signs).square().sum(dim=(1, 2, 3))[:, None]},
            batch_terms={"entropy": self._entropy(h) * h.shape[2] * h.shape[3]},
            metrics={"nonfinite_vectors": count_nonfinite(h)} if self.training else {},
        )

    def _entropy(self, h: Float[Tensor, "b d h w"]) -> Float[Tensor, ""]:
        """E[H(q)] - H(E[q]) over positions. Channels are independent, so q is a product of Bernoulli distributions."""
        logits = h.movedim(1, -1).flatten(0, -2) * (4 / self.config.temperature)  # |h + 1|² - |h - 1|² = 4 h
        # The entropy of a Bernoulli variable: ln(1 + e^-x) + x (1 - sigmoid x).
        sure = (F.softplus(-logits) + logits * torch.sigmoid(-logits)).sum(1).mean()
        # The clamp keeps the gradient of p ln p finite where a code is never used.
        means = [_joint(part.sigmoid()).mean(0).clamp_min(1e-30) for part in logits.split(GROUP, dim=1)]
        spread = [torch.special.entr(mean).sum() for mean in means]
        return sure - torch.stack(spread).sum()

    def project(self, h: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """float32 features."""
        return h.float()

    def codes_to_latents(self, codes: Integer[Tensor, "b h w 1"]) -> Float[Tensor, "b d h w"]:
        """-1 or 1 in each channel. Raises ValueError when a code is out of range."""
        bits = check_codes(codes, self.num_codes) // self.basis % 2
        return (2 * bits - 1).float().movedim(-1, 1)


def _joint(ones: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
    """Probabilities of all 2^d codes from those of each bit."""
    joint = torch.ones_like(ones[:, :1])
    for one in ones.unbind(1):
        joint = torch.cat([joint * (1 - one)[:, None], joint * one[:, None]], dim=1)
    return joint
