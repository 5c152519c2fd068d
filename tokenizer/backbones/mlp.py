"""Dense layers on the flattened image: the network of the first variational autoencoders. The latent is one vector.

With `gated` it is the network of VampPrior (arXiv 1705.07120) and Exemplar VAE (arXiv 2004.04795), weight for weight:
two gated layers of 300, and the initialisation of their code.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import nn

from tokenizer.conditions import ConditionConfig, hidden_layers, input_channels, input_layers
from tokenizer.layers import Sequential
from tokenizer.options import Options


class MlpConfig(Options):
    """Widths of the hidden layers, outermost first; the decoder has them in reverse.

    gated: each hidden layer is (W1 x + b1) * sigmoid(W2 x + b2) (Dauphin et al. 2017, arXiv 1612.08083, equation 1).
    activation: what follows a hidden layer that is not gated.
    """

    kind: Literal["mlp"] = "mlp"
    widths: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(300, 300), min_length=1, max_length=1000)
    gated: bool = False
    activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"] = "relu"

    @model_validator(mode="after")
    def _one_nonlinearity(self):
        if self.gated and self.activation != "relu":
            raise ValueError(f"activation: found {self.activation} with gated: true, expected one of the two")
        return self

    def grid_side(self, image_size: int) -> int:
        """1, whatever the size of the image."""
        return 1


def mlp_encoder(
    config: MlpConfig, in_channels: int, out_channels: int, image_size: int, condition: ConditionConfig | None
) -> Sequential:
    """(b, in_channels, H, W) -> (b, out_channels, 1, 1)."""
    widths = (in_channels * image_size**2 + input_channels(condition), *config.widths)
    layers = [nn.Flatten(), *_hidden(config, widths, condition), _dense(widths[-1], out_channels)]
    return Sequential(*layers, nn.Unflatten(1, (out_channels, 1, 1)))


def mlp_decoder(
    config: MlpConfig, in_channels: int, out_channels: int, image_size: int, condition: ConditionConfig | None
) -> Sequential:
    """(b, in_channels, 1, 1) -> (b, out_channels, H, W)."""
    widths = (in_channels + input_channels(condition), *reversed(config.widths))
    layers = [nn.Flatten(), *_hidden(config, widths, condition), _dense(widths[-1], out_channels * image_size**2)]
    return Sequential(*layers, nn.Unflatten(1, (out_channels, image_size, image_size)))


def _hidden(config: MlpConfig, widths: tuple[int, ...], condition: ConditionConfig | None) -> list[nn.Module]:
    layers = input_layers(condition)
    for before, after in pairwise(widths):
        # W1 and W2 side by side: one product of matrices instead of two.
        wide = 2 * after if config.gated else after
        nonlinearity = nn.GLU(1) if config.gated else _activation(config)
        layers += [_dense(before, wide), *hidden_layers(condition, wide), nonlinearity]
    return layers


def _dense(in_features: int, out_features: int) -> nn.Linear:
    """As both codes begin: weights of variance 2 / in_features (arXiv 1502.01852, equation 10), biases as in torch."""
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / in_features))
    return layer


def _activation(config: MlpConfig) -> nn.Module:
    kinds = {
        "relu": nn.ReLU,
        "leaky_relu": nn.LeakyReLU,
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "tanh": nn.Tanh,
    }
    return kinds[config.activation]()
