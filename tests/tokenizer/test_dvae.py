"""The networks of DALL-E's dVAE: at full size against what openai/DALL-E's code builds, on the meta device."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer import Autoencoder, AutoencoderConfig
from tokenizer.backbones import build_decoder, build_encoder
from tokenizer.backbones.dvae import BottleneckBlock, DvaeConfig
from tokenizer.bottlenecks.gumbel import Gumbel, GumbelConfig

FULL = {
    "image_size": 256,
    "channels": 3,
    "backbone": {"kind": "dvae", "width": 256, "groups": 4, "blocks_per_group": 2},
    "bottleneck": {"kind": "gumbel", "num_codes": 8192, "dim": 128},
    "likelihood": {"kind": "logit_laplace"},
}


@pytest.fixture(scope="module")
def full() -> Any:
    with torch.device("meta"):
        return Autoencoder(AutoencoderConfig.model_validate(FULL))


def block_shapes(before: int, after: int, kernels: tuple[int, ...]) -> list[tuple[int, ...]]:
    """(out, in, kernel, kernel) of the convolutions of a block, the shortcut last."""
    hidden = after // 4
    channels = ((before, hidden), (hidden, hidden), (hidden, hidden), (hidden, after))
    shapes = [(b, a, k, k) for (a, b), k in zip(channels, kernels, strict=True)]
    return shapes + ([(after, before, 1, 1)] if before != after else [])


def convolutions(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def test_the_encoder_of_dalle_has_these_convolutions(full):
    expected = [(256, 3, 7, 7)]
    for before, after in ((256, 256), (256, 512), (512, 1024), (1024, 2048)):
        expected += block_shapes(before, after, (3, 3, 3, 1)) + block_shapes(after, after, (3, 3, 3, 1))
    assert convolutions(full.encoder) == [*expected, (8192, 2048, 1, 1)]


def test_the_decoder_of_dalle_has_these_convolutions_behind_the_one_of_the_bottleneck(full):
    expected = []
    for before, after in ((128, 2048), (2048, 1024), (1024, 512), (512, 256)):
        expected += block_shapes(before, after, (1, 3, 3, 3)) + block_shapes(after, after, (1, 3, 3, 3))
    assert convolutions(full.decoder) == [*expected, (6, 256, 1, 1)]
    assert full.bottleneck.weight.shape == (8192, 128) and full.bottleneck.bias.shape == (128,)


def numbers(shape: tuple[int, ...]) -> int:
    """Of a convolution of this shape: weights and biases."""
    out, inside, height, width = shape
    return out * (inside * height * width + 1)


def test_encoder_and_decoder_have_as_many_weights_as_those_of_dalle(full):
    encoder, decoder = numbers((256, 3, 7, 7)) + numbers((8192, 2048, 1, 1)), numbers((128, 8192, 1, 1))
    for width in (256, 512, 1024, 2048):  # two blocks each: the first has other inputs
        inside, hidden = max(256, width // 2), width // 4
        same = [(hidden, hidden, 3, 3)] * 2
        first = [(hidden, inside, 3, 3), *same, (width, hidden, 1, 1), *[(width, inside, 1, 1)] * (width > 256)]
        encoder += sum(map(numbers, [*first, (hidden, width, 3, 3), *same, (width, hidden, 1, 1)]))
        inside = 2 * width if width < 2048 else 128
        first = [(hidden, inside, 1, 1), *same, (width, hidden, 3, 3), (width, inside, 1, 1)]
        decoder += sum(map(numbers, [*first, (hidden, width, 1, 1), *same, (width, hidden, 3, 3)]))
    decoder += numbers((6, 256, 1, 1))
    assert (encoder, decoder) == (53_786_240, 43_829_766)
    counted = [sum(p.numel() for p in part.parameters()) for part in (full.encoder, full.bottleneck, full.decoder)]
    assert counted[0] == encoder and counted[1] + counted[2] == decoder
    assert sum(p.numel() for p in full.parameters()) == encoder + decoder


def test_tensors_of_the_full_model_have_the_shapes_of_dalle(full):
    grids: list[tuple[int, int]] = []
    for layer in (*full.encoder, *full.decoder):
        if isinstance(layer, BottleneckBlock):
            layer.register_forward_hook(lambda _, inputs, output: grids.append(tuple(output.shape[1:3])))
    images = torch.zeros(2, 3, 256, 256, device="meta")
    h = full.features(images)
    params = full.decoder(torch.zeros(2, 128, 32, 32, device="meta"))
    assert h.shape == (2, 8192, 32, 32) and params.shape == (2, 6, 256, 256)
    assert full.grid == (32, 32, 1) and full.num_codes == 8192
    down = [(256, 256), (512, 128), (1024, 64), (2048, 32)]
    assert grids == [grid for grid in (*down, *reversed(down)) for _ in range(2)]


@pytest.mark.parametrize(("before", "after"), [(8, 8), (8, 16)])
@pytest.mark.parametrize("kernels", [(3, 3, 3, 1), (1, 3, 3, 3)])
def test_a_block_is_four_convolutions_each_behind_relu_added_to_the_input(before, after, kernels):
    block, x = BottleneckBlock(before, after, kernels, 0.1), torch.randn(2, before, 5, 6)
    layers = [layer for layer in block.residual if isinstance(layer, nn.Conv2d)]
    h: Tensor = x
    for layer, kernel in zip(layers, kernels, strict=True):
        h = F.conv2d(h.clamp(min=0), layer.weight, layer.bias, padding=kernel // 2)
    shortcut, kept = block.shortcut, x
    if isinstance(shortcut, nn.Conv2d):
        kept = torch.einsum("oi,bihw->bohw", shortcut.weight[:, :, 0, 0], x)  # its bias begins at 0
    assert isinstance(shortcut, nn.Identity) == (before == after)
    torch.testing.assert_close(block(x), kept + 0.1 * h)


@pytest.mark.parametrize(("groups", "blocks", "gain"), [(4, 2, 1 / 64), (3, 2, 1 / 36), (1, 1, 1)])
def test_residuals_are_scaled_by_the_square_of_the_number_of_blocks(groups, blocks, gain):
    config = DvaeConfig(width=4, groups=groups, blocks_per_group=blocks)
    for network in (build_encoder(config, 3, 5, 16), build_decoder(config, 5, 6, 16)):
        gains = [layer.gain for layer in network if isinstance(layer, BottleneckBlock)]
        assert gains == pytest.approx([gain] * groups * blocks)


def test_the_grid_is_halved_by_the_maximum_and_doubled_by_the_nearest():
    config = DvaeConfig(width=4, groups=2, blocks_per_group=1)
    encoder, decoder = build_encoder(config, 3, 5, 8), build_decoder(config, 5, 6, 8)
    x = torch.randn(1, 4, 2, 4)
    assert torch.equal(encoder[2](x), x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)))
    assert torch.equal(decoder[1](x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_weights_begin_normal_by_their_inputs_and_biases_at_zero():
    torch.manual_seed(0)
    config = DvaeConfig(width=32, groups=2, blocks_per_group=1)
    for network in (build_encoder(config, 3, 50, 16), build_decoder(config, 50, 30, 16)):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                inputs = layer.weight[0].numel()
                assert layer.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.2)
                assert (layer.bias == 0).all()


def test_the_embeddings_begin_as_the_first_layer_of_a_decoder_that_sees_one_hot_vectors():
    bottleneck = Gumbel(GumbelConfig(num_codes=1024, dim=128))
    assert bottleneck.weight.std().item() == pytest.approx(1024**-0.5, rel=0.02) and (bottleneck.bias == 0).all()


def test_names_of_weights_that_stored_folders_hold():
    config = DvaeConfig(width=4, groups=2, blocks_per_group=1)
    block = ("residual.1", "residual.3", "residual.5", "residual.7")
    encoder, decoder = build_encoder(config, 3, 5, 8).state_dict(), build_decoder(config, 5, 6, 8).state_dict()
    expected = ["0", *(f"1.{name}" for name in block), *(f"3.{name}" for name in (*block, "shortcut")), "5"]
    assert list(encoder)[::2] == [f"{name}.weight" for name in expected]
    whole = (*block, "shortcut")
    expected = [*(f"0.{name}" for name in whole), *(f"2.{name}" for name in whole), "4"]
    assert list(decoder)[::2] == [f"{name}.weight" for name in expected]
