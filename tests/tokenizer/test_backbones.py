"""The contract of every backbone in the union, then the layers of the ResNet."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tests.tokenizer.members import examples
from tokenizer.backbones import BackboneConfig, build_decoder, build_encoder
from tokenizer.backbones.resnet import ResnetConfig
from tokenizer.layers import Attention, Downsample, Sequential, Upsample

RESNET = ResnetConfig(width=8, multipliers=(1, 2, 2), residual_blocks=1, attention_grids=(7,))
MEMBERS = examples(BackboneConfig)
every_member = pytest.mark.parametrize("config", MEMBERS.values(), ids=MEMBERS)


def size_of(config) -> int:
    """An image three positions wide."""
    return 3 * config.downsampling


@every_member
def test_shapes_go_down_by_the_factor_and_up_again(config):
    size = size_of(config)
    encoder, decoder = build_encoder(config, 3, 5, size), build_decoder(config, 6, 7, size)
    assert encoder(torch.rand(2, 3, size, size)).shape == (2, 5, 3, 3)
    assert decoder(torch.rand(2, 6, 3, 3)).shape == (2, 7, size, size)


@every_member
def test_every_parameter_gets_a_gradient(config):
    size = size_of(config)
    encoder, decoder = build_encoder(config, 1, 4, size), build_decoder(config, 4, 1, size)
    decoder(encoder(torch.rand(3, 1, size, size))).square().sum().backward()
    for part in (encoder, decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@every_member
def test_images_of_a_batch_do_not_see_each_other(config):
    size = size_of(config)
    x = torch.rand(3, 1, size, size, requires_grad=True)
    build_encoder(config, 1, 4, size)(x)[1].sum().backward()
    assert x.grad is not None
    assert [bool(image.abs().sum() > 0) for image in x.grad] == [False, True, False]


@every_member
def test_an_image_size_that_is_no_multiple_of_the_downsampling_is_refused(config):
    size = size_of(config) + 1
    with pytest.raises(ValueError, match=rf"image_size {size} .* {config.downsampling}"):
        build_encoder(config, 1, 4, size)


@every_member
def test_a_condition_can_be_carried(config):
    size = size_of(config)
    for network in (build_encoder(config, 3, 5, size), build_decoder(config, 6, 7, size)):
        assert isinstance(network, Sequential)


@every_member
def test_configuration_survives_json(config):
    adapter = TypeAdapter(BackboneConfig)
    assert adapter.validate_json(adapter.dump_json(config)) == config


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
