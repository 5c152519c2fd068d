"""What backbones share: a sequence of layers, norm, residual block, attention over positions, down- and upsampling."""

import math

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.conditions import ConditionConfig, film_layers, norm_layer


class Sequential(nn.Sequential):
    """Layers one after another. Those with `takes_condition = True` are called as `layer(x, condition)`."""

    takes_condition = True

    def forward(self, x: Float[Tensor, "b c h w"], condition: Tensor | None = None) -> Float[Tensor, "b d h2 w2"]:
        for layer in self:
            x = call(layer, x, condition)
        return x


def call(layer: nn.Module, x: Tensor, condition: Tensor | None) -> Tensor:
    """`layer(x, condition)` if the layer takes one, otherwise `layer(x)`."""
    return layer(x, condition) if getattr(layer, "takes_condition", False) else layer(x)


def group_norm(channels: int, condition: ConditionConfig | None = None) -> nn.Module:
    """32 groups as in VQGAN, or the largest power of two below that divides a narrower layer."""
    return norm_layer(condition, channels, math.gcd(32, channels))


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, added to the input (Esser et al. 2021, arXiv 2012.09841, table 7)."""

    takes_condition = True

    def __init__(
        self, in_channels: int, out_channels: int, dropout: float = 0.0, condition: ConditionConfig | None = None
    ):
        super().__init__()
        self.norm1 = group_norm(in_channels, condition)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, condition)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.film = Sequential(*film_layers(condition, out_channels))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Tensor | None = None) -> Float[Tensor, "b d h w"]:
        h = self.conv1(F.silu(call(self.norm1, x, condition)))
        h = self.conv2(self.dropout(F.silu(call(self.norm2, h, condition))))
        return self.shortcut(x) + self.film(h, condition)


class Attention(nn.Module):
    """Self-attention between all positions of the grid, one head, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        qkv = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return x + self.out(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halves the grid: 3x3 convolution of stride two, padded on the right and below only, as VQGAN and LDM do."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the grid: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
