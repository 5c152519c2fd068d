"""The contract of every backbone in the union, then the layers of the ResNet."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from tests.tokenizer.members import examples
from tokenizer.backbones import BackboneConfig, build_decoder, build_encoder
from tokenizer.backbones.conv import ConvConfig
from tokenizer.backbones.mlp import MlpConfig
from tokenizer.backbones.patch import PatchConfig
from tokenizer.backbones.resnet import ResnetConfig
from tokenizer.layers import Attention, Downsample, Sequential, Upsample

RESNET = ResnetConfig(width=8, multipliers=(1, 2, 2), residual_blocks=1, attention_grids=(7,))
MEMBERS = examples(BackboneConfig)
every_member = pytest.mark.parametrize("config", MEMBERS.values(), ids=MEMBERS)


SIZE = 12  # every example takes it


@every_member
def test_shapes_go_down_to_the_grid_and_up_again(config):
    grid = config.grid_side(SIZE)
    encoder, decoder = build_encoder(config, 3, 5, SIZE), build_decoder(config, 6, 7, SIZE)
    assert encoder(torch.rand(2, 3, SIZE, SIZE)).shape == (2, 5, grid, grid)
    assert decoder(torch.rand(2, 6, grid, grid)).shape == (2, 7, SIZE, SIZE)


@every_member
def test_every_parameter_gets_a_gradient(config):
    encoder, decoder = build_encoder(config, 1, 4, SIZE), build_decoder(config, 4, 1, SIZE)
    decoder(encoder(torch.rand(3, 1, SIZE, SIZE))).square().sum().backward()
    for part in (encoder, decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@every_member
def test_images_of_a_batch_do_not_see_each_other(config):
    torch.manual_seed(0)  # with others every unit of a narrow layer may be dead
    x = torch.rand(3, 1, SIZE, SIZE, requires_grad=True)
    build_encoder(config, 1, 4, SIZE)(x)[1].sum().backward()
    assert x.grad is not None
    assert [bool(image.abs().sum() > 0) for image in x.grad] == [False, True, False]


@every_member
def test_an_image_size_is_taken_or_refused_by_name(config):
    for size in range(1, SIZE):
        try:
            grid = config.grid_side(size)
        except ValueError as error:
            assert f"image_size {size} is not a multiple of" in str(error)
            for build in (build_encoder, build_decoder):
                with pytest.raises(ValueError, match=f"image_size {size} "):
                    build(config, 1, 4, size)
        else:
            assert build_encoder(config, 1, 4, size)(torch.rand(2, 1, size, size)).shape == (2, 4, grid, grid)


def test_halving_needs_a_multiple():
    with pytest.raises(ValueError, match="image_size 10 is not a multiple of 4, the downsampling of this conv"):
        ConvConfig().grid_side(10)
    assert ConvConfig().grid_side(12) == ResnetConfig().grid_side(12) == 3


@every_member
def test_a_condition_can_be_carried(config):
    for network in (build_encoder(config, 3, 5, SIZE), build_decoder(config, 6, 7, SIZE)):
        assert isinstance(network, Sequential)


@every_member
def test_configuration_survives_json(config):
    adapter = TypeAdapter(BackboneConfig)
    assert adapter.validate_json(adapter.dump_json(config)) == config


@pytest.mark.parametrize("gated", [False, True])
def test_the_mlp_is_dense_layers_on_the_flattened_image(gated):
    encoder, x = build_encoder(MlpConfig(widths=(9, 7), gated=gated), 2, 4, 3), torch.rand(5, 2, 3, 3)
    h = x.reshape(5, 18)
    dense = [layer for layer in encoder if isinstance(layer, nn.Linear)]
    for layer, width in zip(dense, (9, 7), strict=False):
        if gated:
            (w1, w2), (b1, b2) = layer.weight.split(width), layer.bias.split(width)
            h = (h @ w1.T + b1) * torch.sigmoid(h @ w2.T + b2)
        else:
            h = (h @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(encoder(x), dense[-1](h)[:, :, None, None])


@pytest.mark.parametrize("build", [build_encoder, build_decoder])
def test_the_weights_of_the_mlp_begin_as_in_the_paper(build):
    torch.manual_seed(0)
    for layer in build(MlpConfig(gated=True), 10, 40, 28):
        if isinstance(layer, nn.Linear):
            assert abs(layer.weight.std() / (2 / layer.in_features) ** 0.5 - 1) < 0.05
            assert layer.bias.abs().max() <= layer.in_features**-0.5


def test_the_mlp_of_the_paper_has_as_many_weights_as_its_code():
    encoder, decoder = build_encoder(MlpConfig(gated=True), 1, 80, 28), build_decoder(MlpConfig(gated=True), 40, 1, 28)
    gated = 2 * (785 * 300 + 301 * 300)
    assert sum(p.numel() for p in encoder.parameters()) == gated + 301 * 80
    assert sum(p.numel() for p in decoder.parameters()) == 2 * (41 * 300 + 301 * 300) + 301 * 784


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (MlpConfig(widths=(9, 7)), 16),  # the image
        (ConvConfig(widths=(5,), dense_widths=(9, 7)), 5 * 4),
        (ResnetConfig(width=8, multipliers=(1, 2), dense_widths=(9, 7)), 16 * 4),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_the_dense_layers_of_a_decoder_mirror_those_of_its_encoder(config, grid):
    encoder, decoder = (build(config, 1, 1, 4) for build in (build_encoder, build_decoder))
    down, up = ([part.out_features for part in net if isinstance(part, nn.Linear)] for net in (encoder, decoder))
    assert down == [9, 7, 1] and up == [7, 9, grid]


def test_a_gated_layer_has_no_other_activation():
    with pytest.raises(ValidationError, match="activation: found tanh with gated: true"):
        MlpConfig(gated=True, activation="tanh")


BETA_VAE = ConvConfig(widths=(32, 32, 64, 64), residual_blocks=0, dense_widths=(256,))


def test_the_network_of_disentanglement_lib_can_be_written_as_a_recipe():
    encoder, decoder = build_encoder(BETA_VAE, 1, 20, 64), build_decoder(BETA_VAE, 10, 1, 64)
    kinds = {part: [type(layer).__name__ for layer in part] for part in (encoder, decoder)}
    assert kinds[encoder] == ["Conv2d", "ReLU"] * 4 + ["Flatten", "Linear", "ReLU", "Linear", "Unflatten"]
    dense = ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Unflatten"]
    assert kinds[decoder] == dense + ["ConvTranspose2d", "ReLU"] * 3 + ["ConvTranspose2d"]
    shapes = {part: [tuple(p.shape) for p in part.parameters() if p.ndim > 1] for part in (encoder, decoder)}
    convolutions = [(32, 1, 4, 4), (32, 32, 4, 4), (64, 32, 4, 4), (64, 64, 4, 4)]
    assert shapes[encoder] == [*convolutions, (256, 1024), (20, 256)]
    assert shapes[decoder] == [(256, 10), (1024, 256), *convolutions[::-1]]


def test_a_vector_sees_the_whole_image_and_shapes_the_whole_image():
    for config in (BETA_VAE, ResnetConfig(width=8, multipliers=(1, 1, 1), middle_attention=False, dense_widths=())):
        image, z = torch.rand(1, 1, 32, 32, requires_grad=True), torch.rand(1, 4, 1, 1)
        build_encoder(config, 1, 1, 32)(image).sum().backward()
        assert image.grad is not None and (image.grad != 0).all()
        decoder = build_decoder(config, 4, 1, 32)
        assert (decoder(z) != decoder(z + 1)).all()


def test_a_code_sees_its_own_patch_alone_and_draws_it_alone():
    config = PatchConfig(patch_size=4, widths=(8,))
    image, z = torch.rand(1, 3, 12, 12, requires_grad=True), torch.rand(1, 5, 3, 3, requires_grad=True)
    build_encoder(config, 3, 5, 12)(image)[:, :, 1, 2].sum().backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(0) > 0
    assert seen[4:8, 8:12].all() and seen.sum() == 16
    build_decoder(config, 5, 3, 12)(z)[:, :, 4:8, 8:12].sum().backward()
    assert z.grad is not None
    assert (z.grad[0].abs().sum(0) > 0).nonzero().tolist() == [[1, 2]]


def test_equal_patches_have_equal_latents_wherever_they_stand():
    image = torch.rand(1, 3, 4, 4).repeat(1, 1, 3, 2)
    latents = build_encoder(PatchConfig(), 3, 5, 12)(image.repeat(1, 1, 1, 2)[..., :12])
    torch.testing.assert_close(latents, latents[..., :1, :1].expand_as(latents))


def test_names_of_weights_that_stored_folders_hold():
    conv = ConvConfig(widths=(4, 8), residual_blocks=1)
    assert list(build_encoder(conv, 1, 2, 8).state_dict())[::2] == [
        f"{name}.weight" for name in ("0", "2", "4", "5.conv1", "5.conv2", "7")
    ]
    assert list(build_decoder(conv, 1, 2, 8).state_dict())[::2] == [
        f"{name}.weight" for name in ("0", "1.conv1", "1.conv2", "3", "5")
    ]
    resnet = build_encoder(ResnetConfig(width=8, multipliers=(1, 2), residual_blocks=1), 1, 2, 8).state_dict()
    block, attention = ("norm1", "conv1", "norm2", "conv2"), ("norm", "qkv", "out")
    expected = ["0", *(f"1.{name}" for name in block), "2.conv", *(f"3.{name}" for name in (*block, "shortcut"))]
    expected += [f"4.{name}" for name in block] + [f"5.{name}" for name in attention]
    expected += [f"6.{name}" for name in block] + ["7", "9"]
    assert list(resnet)[::2] == [f"{name}.weight" for name in expected]
    patch = PatchConfig(patch_size=2, widths=(4, 8))
    assert list(build_encoder(patch, 1, 2, 8).state_dict())[::2] == ["1.weight", "3.weight", "5.weight"]
    assert list(build_decoder(patch, 1, 2, 8).state_dict())[::2] == ["0.weight", "2.weight", "4.weight"]


def test_dropout_decides_no_code_and_the_width_does():
    assert ResnetConfig(dropout=0.1).encode_config() == ResnetConfig().encode_config()
    assert ResnetConfig(width=32).encode_config() != ResnetConfig().encode_config()


def test_attention_at_a_grid_that_never_occurs_is_refused():
    with pytest.raises(ValueError, match=r"attention_grids \[7\] .* \[32, 16, 8\]"):
        build_decoder(RESNET, 1, 4, 32)


@pytest.mark.parametrize(
    ("grids", "middle", "expected"), [((), False, 0), ((), True, 1), ((7,), True, 2), ((28, 14), False, 2)]
)
def test_attention_stands_where_the_recipe_puts_it(grids, middle, expected):
    config = RESNET.model_copy(update={"attention_grids": grids, "middle_attention": middle})
    encoder = build_encoder(config, 1, 4, 28)
    assert sum(isinstance(part, Attention) for part in encoder.modules()) == expected


def test_attention_does_not_depend_on_the_order_of_positions():
    attention, x = Attention(8), torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(attention(x.flip(2, 3)), attention(x).flip(2, 3))


def test_attention_is_softmax_of_scaled_products():
    attention, x = Attention(8), torch.randn(1, 8, 3, 4)
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).squeeze(0).T.chunk(3, dim=1)
    expected = ((q @ k.T / 8**0.5).softmax(1) @ v).T.reshape(1, 8, 3, 4)
    torch.testing.assert_close(attention(x), x + attention.out(expected))


def test_resampling_halves_and_doubles():
    x = torch.rand(1, 4, 6, 8)
    assert Downsample(4)(x).shape == (1, 4, 3, 4)
    assert Upsample(4)(x).shape == (1, 4, 12, 16)


def test_the_kind_chooses_the_backbone_and_unknown_keys_are_refused():
    adapter: TypeAdapter = TypeAdapter(BackboneConfig)
    assert isinstance(adapter.validate_python({"kind": "resnet", "width": 16}), ResnetConfig)
    with pytest.raises(ValidationError, match="width"):
        adapter.validate_python({"kind": "conv", "width": 16})
