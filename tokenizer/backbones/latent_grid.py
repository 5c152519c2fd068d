"""From pixels to the smallest grid of a network, and between that grid and a latent that is one vector."""

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from tokenizer.conditions import ConditionConfig, hidden_layers


def halved(image_size: int, times: int, kind: str) -> int:
    """image_size / 2^times. Raises ValueError, naming the `kind` of backbone, when that is not a whole number."""
    if image_size % 2**times:
        raise ValueError(
            f"image_size {image_size} is not a multiple of {2**times}, the downsampling of this {kind} backbone"
        )
    return image_size // 2**times


def grid_to_vector(
    channels: int,
    side: int,
    widths: tuple[int, ...],
    out_channels: int,
    activation: Callable[[], nn.Module],
    condition: ConditionConfig | None,
) -> list[nn.Module]:
    """(b, channels, side, side) -> (b, out_channels, 1, 1) through dense layers of these widths."""
    widths = (channels * side**2, *widths)
    hidden = _dense(widths, activation, condition)
    return [nn.Flatten(), *hidden, nn.Linear(widths[-1], out_channels), nn.Unflatten(1, (out_channels, 1, 1))]


def vector_to_grid(
    in_channels: int,
    widths: tuple[int, ...],
    channels: int,
    side: int,
    activation: Callable[[], nn.Module],
    condition: ConditionConfig | None,
) -> list[nn.Module]:
    """(b, in_channels, 1, 1) -> (b, channels, side, side); the same widths in reverse, an activation at the end too."""
    hidden = _dense((in_channels, *reversed(widths), channels * side**2), activation, condition)
    return [nn.Flatten(), *hidden, nn.Unflatten(1, (channels, side, side))]


def _dense(
    widths: tuple[int, ...], activation: Callable[[], nn.Module], condition: ConditionConfig | None
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), *hidden_layers(condition, after), activation()]
    return layers
