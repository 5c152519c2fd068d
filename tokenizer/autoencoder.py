"""Stage one: backbone x bottleneck x likelihood. VAE, VQ-VAE and their kin are configurations of this one class."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from tokenizer.backbones import BackboneConfig, build_decoder, build_encoder, check_image_size
from tokenizer.bottlenecks import BottleneckConfig, Bottlenecked, build_bottleneck
from tokenizer.bottlenecks.gaussian import Gaussian
from tokenizer.likelihoods import LikelihoodConfig, build_likelihood

Images = UInt8[Tensor, "b c h w"] | Float[Tensor, "b c h w"]


class AutoencoderConfig(BaseModel):
    """`image_size` is the side in pixels of square pictures with `channels` 1 (grey) or 3 (RGB)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    image_size: int = Field(gt=0)
    channels: Literal[1, 3]
    backbone: BackboneConfig
    bottleneck: BottleneckConfig
    likelihood: LikelihoodConfig

    @model_validator(mode="after")
    def _grid_is_whole(self):
        check_image_size(self.backbone, self.image_size)
        return self


@dataclass
class Autoencoded:
    """`params` are the likelihood's maps; `terms` the bottleneck's and "nll": unweighted, one number per image."""

    bottlenecked: Bottlenecked
    params: Float[Tensor, "b p h w"]
    terms: dict[str, Float[Tensor, " b"]]


class Autoencoder(nn.Module):
    """Pictures (b, c, H, W), uint8 or float in [0, 1]  <->  latents z (b, d, h, w), and codes (b, h, w, q) if discrete.

    In training mode `forward` and `encode` move an EMA codebook, and a Gaussian z is a sample; in evaluation mode both
    are deterministic and no buffer changes. Whoever needs a second look at a batch while training, as a discriminator
    does, takes it under `evaluating(model)`.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        size = config.image_size
        self.likelihood = build_likelihood(config.likelihood, config.channels)
        self.bottleneck = build_bottleneck(config.bottleneck)
        self.encoder = build_encoder(config.backbone, config.channels, self.bottleneck.features_in, size)
        self.decoder = build_decoder(config.backbone, self.bottleneck.dim, self.likelihood.out_channels, size)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(h, w, q): rows, columns and codes per cell; q = 0 when the latent is continuous."""
        side = self.config.image_size // self.config.backbone.downsampling
        return side, side, self.bottleneck.depth

    @property
    def num_codes(self) -> int | None:
        return self.bottleneck.num_codes

    @property
    def dims(self) -> int:
        """Numbers in one picture, c * H * W: what nats per image are divided by to give nats per dimension."""
        return self.config.channels * self.config.image_size**2

    def forward(self, x: Images, step: int = 0) -> Autoencoded:
        """Raises ValueError when pictures do not have the configured size, channels and range type."""
        x = self._unit_range(x)
        bottlenecked = self.bottleneck(self.encoder(self.likelihood.inmap(x)), step)
        params = self.decoder(bottlenecked.z)
        return Autoencoded(bottlenecked, params, bottlenecked.terms | {"nll": self.likelihood.nll(params, x)})

    def encode(self, x: Images, step: int = 0) -> Bottlenecked:
        """Raises ValueError when pictures do not have the configured size, channels and range type."""
        return self.bottleneck(self.encoder(self.likelihood.inmap(self._unit_range(x))), step)

    def decode(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The likelihood's mean, in [0, 1]."""
        return self.likelihood.mean(self.decoder(z))

    def decode_codes(self, codes: Int[Tensor, "b h w q"]) -> Float[Tensor, "b c h2 w2"]:
        """Pictures in [0, 1]. Raises ValueError for a continuous latent, another grid, or codes out of range."""
        if isinstance(self.bottleneck, Gaussian):
            raise ValueError(f"a {self.config.bottleneck.kind} bottleneck has no codes: decode its latents z")
        if tuple(codes.shape[1:]) != self.grid:
            raise ValueError(
                f"codes have the grid {tuple(codes.shape[1:])}, expected {self.grid} (rows, columns, depth)"
            )
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= self.bottleneck.num_codes:
            raise ValueError(f"codes run from {low} to {high}, expected 0 to {self.bottleneck.num_codes - 1}")
        return self.decode(self.bottleneck.codes_to_latents(codes))

    def reconstruct(self, x: Images) -> Float[Tensor, "b c h w"]:
        """Pictures in [0, 1]."""
        return self.decode(self.encode(x).z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n c h w"]:
        """n new pictures in [0, 1] (the likelihood's mean) from the latent prior p(z).

        Raises ValueError for a discrete latent: its prior is a transformer of its own, trained on the codes.
        """
        if not isinstance(self.bottleneck, Gaussian):
            raise ValueError(
                f"a {self.config.bottleneck.kind} bottleneck has no prior to sample from: "
                "train a token prior on its codes, sample that, and decode_codes"
            )
        rows, columns, _ = self.grid
        z = self.bottleneck.sample_prior(n, rows, columns, generator)
        return self.decode(z.to(next(self.parameters()).device))

    def term_names(self) -> set[str]:
        """The losses that `forward` names, seen by evaluating one black picture."""
        size = self.config.image_size
        device = next(self.parameters()).device
        black = torch.zeros(1, self.config.channels, size, size, device=device)
        with torch.no_grad(), evaluating(self):
            return set(self(black).terms)

    def _unit_range(self, x: Tensor) -> Tensor:
        expected = (self.config.channels, self.config.image_size, self.config.image_size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"pictures have the shape {tuple(x.shape[1:])}, expected {expected} (channels, height, width)"
            )
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise ValueError(f"pictures are {x.dtype}, expected torch.uint8, or floating point in [0, 1]")
        # Convolutions keep this layout to the end of the network; on a CPU it saves them a fifth of their time.
        unit = x.to(torch.float32, memory_format=torch.channels_last)
        return unit / 255 if x.dtype == torch.uint8 else unit


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """`module` in evaluation mode; each part returns to its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for part, training in modes:
            part.training = training
