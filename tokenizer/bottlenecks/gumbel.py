"""Gumbel-softmax over a vocabulary of codes: the bottleneck of DALL-E's discrete variational autoencoder."""

import math
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int, Integer
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks.contract import MAX_CODES, BottleneckOutput, OneGrid, check_codes, count_nonfinite
from tokenizer.noise import Generators, gumbel
from tokenizer.options import TRAINING_ONLY, Options
from tokenizer.schedules import Cosine, Schedule
from tokenizer.straight_through import straight_through


class GumbelConfig(Options):
    """The encoder gives a logit for each of `num_codes` codes; a code has an embedding of `dim` channels.

    temperature: of the relaxation, at each step. The default is DALL-E's schedule, which suits its 3 million steps. A
        shorter run needs a shorter one: codes are trained well for inference where the temperature ends low.
    straight_through: the decoder sees a single code in training too; the gradient is that of the relaxation.
    """

    continuous: ClassVar[bool] = False
    random: ClassVar[bool] = False
    kind: Literal["gumbel"] = "gumbel"
    num_codes: int = Field(default=512, ge=1, le=MAX_CODES)
    dim: int = Field(default=64, ge=1)
    temperature: Annotated[Schedule, TRAINING_ONLY] = Field(
        default=Cosine(start=1, end=1 / 16, steps=150_000), examples=[0.5]
    )
    straight_through: Annotated[bool, TRAINING_ONLY] = False

    @field_validator("temperature")
    @classmethod
    def _is_positive(cls, temperature: Schedule) -> Schedule:
        if temperature.lowest <= 0:
            raise ValueError(f"temperature falls to {temperature.lowest:g}, expected a number above 0 at every step")
        return temperature


class Gumbel(OneGrid, nn.Module):
    """The categorical bottleneck of Ramesh et al. 2021 (arXiv 2102.12092, section 2.1), relaxed as in Jang et al. 2017
    (arXiv 1611.01144, equation 2).

    In training z is a sum of embeddings, weighed by softmax((h + Gumbel noise) / temperature). The noise comes from
    torch's default generator. In evaluation there is no noise: the code is the largest logit, and z its embedding.

    In DALL-E's code a one-hot vector of 8,192 channels enters the decoder, whose first layer is a 1x1 convolution to
    128 channels. That product is one row of the convolution's weight, plus its bias. So this layer is kept here:
    `weight` and `bias` are its parameters and z is its output, `dim` channels. Codes become latents by looking rows up,
    and no one-hot vector is made outside training.

    The term "kl" is the KL of the categorical distribution that the logits give, from the uniform one, summed over the
    positions of an image, in nats. It has nothing to do with temperature or noise. The paper divides its loss by the
    numbers of an image, 256 * 256 * 3, as smalti does, so its weight of 6.6 is `kl: 6.6` beside `nll: 1`. (On the mean
    over the 32 * 32 positions, beside the nll per number, this is 6.6 / 192.)

    temperature: the one of the last optimizer step. `relaxed` uses it in evaluation.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    temperature: Tensor

    def __init__(self, config: GumbelConfig):
        super().__init__()
        self.config = config
        self.in_channels = self.num_codes = config.num_codes
        self.dim, self.num_quantizers = config.dim, 1
        self.weight = nn.Parameter(torch.randn(config.num_codes, config.dim) * config.num_codes**-0.5)
        self.bias = nn.Parameter(torch.zeros(config.dim))
        self.register_buffer("temperature", torch.tensor(config.temperature.at(0)))

    @property
    def embedding(self) -> Float[Tensor, "1 k d"]:
        """The latents of all codes."""
        return (self.weight + self.bias).detach()[None]

    def forward(self, h: Float[Tensor, "b k h w"], step: int = 0) -> BottleneckOutput:
        with torch.autocast(h.device.type, enabled=False):
            logits = h.float()
            codes = logits.argmax(1)
            terms = {"kl": self._kl(logits)}
            if not self.training:
                relaxed = partial(self._relaxed, logits, self.temperature)
                return BottleneckOutput(self._lookup(codes), codes[..., None], terms=terms, relaxed=relaxed)
            latent = self._relaxed(logits, self.config.temperature.at(step))
        metrics = {"nonfinite_vectors": count_nonfinite(h)}
        return BottleneckOutput(latent, codes[..., None], terms=terms, metrics=metrics)

    def _relaxed(
        self, logits: Float[Tensor, "b k h w"], temperature: float | Tensor, generator: Generators = None
    ) -> Float[Tensor, "b d h w"]:
        noisy = logits + gumbel(logits.shape, generator, logits.device)
        shares = (noisy / temperature).softmax(1)
        if not self.config.straight_through:
            return self._mix(shares, self.weight, self.bias)
        # The embedding learns from the code that the decoder saw, the logits from the relaxation.
        single = self._lookup(noisy.argmax(1))
        return single + straight_through(self._mix(shares, self.weight.detach()), torch.zeros_like(single))

    def _mix(
        self, shares: Float[Tensor, "b k h w"], weight: Float[Tensor, "k d"], bias: Float[Tensor, " d"] | None = None
    ) -> Float[Tensor, "b d h w"]:
        """The decoder's first layer."""
        return F.conv2d(shares, weight.float().t()[:, :, None, None], None if bias is None else bias.float())

    def _lookup(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """`_mix` of one-hot vectors, without them."""
        return (F.embedding(codes, self.weight) + self.bias).float().movedim(-1, 1)

    def _kl(self, logits: Float[Tensor, "b k h w"]) -> Float[Tensor, "b 1"]:
        log_share = logits.log_softmax(1)
        return (log_share.exp() * (log_share + math.log(self.num_codes))).sum((1, 2, 3))[:, None]

    def distances(self, h: Float[Tensor, "b k h w"], codes: Integer[Tensor, "b h w 1"]) -> Float[Tensor, "b h w"]:
        """-ln of the codes' probabilities."""
        return F.cross_entropy(h.float(), check_codes(codes, self.num_codes)[..., 0], reduction="none")

    def codes_to_latents(self, codes: Integer[Tensor, "b h w 1"]) -> Float[Tensor, "b d h w"]:
        """The embeddings of codes. Raises ValueError when one is out of range."""
        return self._lookup(check_codes(codes, self.num_codes)[..., 0])

    def encode_state(self) -> dict[str, Tensor]:
        """The embeddings. They decide no code of this grid; those of finer levels, if there are, follow from them."""
        return {"weight": self.weight.detach(), "bias": self.bias.detach()}

    def after_step(self, step: int) -> None:
        if self.training:
            self.temperature.fill_(self.config.temperature.at(step))
