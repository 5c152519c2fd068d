import pytest
import torch
from pydantic import ValidationError

from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderPhase, ObjectiveConfig, evaluating

BOTTLENECKS = {
    "vq": {"kind": "vq", "num_codes": 16, "dim": 8},
    "residual": {"kind": "vq", "num_codes": 16, "dim": 8, "depth": 2},
    "fsq": {"kind": "fsq", "levels": [5, 5, 3]},
    "gaussian": {"kind": "gaussian", "dim": 8},
}
DISCRETE = ["vq", "residual", "fsq"]
WEIGHTS = {"nll": 1.0, "commitment": 0.25, "kl": 1.0}
every_bottleneck = pytest.mark.parametrize("name", list(BOTTLENECKS))
every_discrete = pytest.mark.parametrize("name", DISCRETE)


def build(name: str, seed: int = 0, **changes) -> Autoencoder:
    recipe = {
        "image_size": 8,
        "channels": 3,
        "backbone": {"kind": "conv", "widths": [16, 32], "residual_blocks": 1, "residual_width": 16},
        "bottleneck": BOTTLENECKS[name],
        "likelihood": {"kind": "normal"},
    }
    torch.manual_seed(seed)
    return Autoencoder(AutoencoderConfig.model_validate(recipe | changes))


def pictures(n: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Random colours in the quadrants of a picture: easy to tell apart, easy to learn."""
    quadrants = torch.randint(256, (n, 3, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return quadrants.repeat_interleave(size // 2, 2).repeat_interleave(size // 2, 3)


@every_bottleneck
def test_shapes(name):
    model, x = build(name), pictures(5)
    out = model(x)
    rows, columns, depth = model.grid
    assert (rows, columns) == (2, 2) and depth == {"vq": 1, "residual": 2, "fsq": 1, "gaussian": 0}[name]
    assert out.bottlenecked.z.shape == (5, model.bottleneck.dim, 2, 2)
    assert out.params.shape == model.reconstruct(x).shape == (5, 3, 8, 8)
    assert "nll" in out.terms and {term.shape for term in out.terms.values()} == {(5,)}
    assert set(out.terms) == model.term_names()
    if name in DISCRETE:
        assert out.bottlenecked.codes.shape == (5, 2, 2, depth)
        assert model.num_codes == {"vq": 16, "residual": 16, "fsq": 75}[name]
    else:
        assert out.bottlenecked.codes is None and model.num_codes is None


@every_bottleneck
def test_evaluation_repeats_itself_and_changes_no_buffer(name):
    model, x = build(name), pictures(5)
    model(x)  # one training step's worth of statistics
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = model(x), model(x)
    assert torch.equal(first.params, second.params)
    assert all(torch.equal(first.terms[key], second.terms[key]) for key in first.terms)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@every_bottleneck
def test_gradients_reach_every_parameter(name):
    model = build(name)
    # Untrained features are small: FSQ would round them all to zero, and hide the decoder's first weights behind that.
    model.encoder[-1].weight.data *= 10
    sum(term.sum() for term in model(pictures(5)).terms.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@every_bottleneck
def test_overfits_a_few_pictures(name):
    model, batch = build(name), {"image": pictures(4)}
    weights = {key: WEIGHTS[key] for key in model.term_names()}
    phase = AutoencoderPhase(model, ObjectiveConfig(weights=weights))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        optimizer.zero_grad()
        loss, _ = phase(batch, step)
        loss.backward()
        optimizer.step()
    phase.eval()
    _, metrics = phase(batch, 150)
    assert metrics["psnr"] > 22  # a mean colour gives about 11 dB


@every_discrete
def test_decoding_the_codes_is_decoding_the_latent(name):
    model, x = build(name), pictures(5)
    model(x)
    model.eval()
    encoded = model.encode(x)
    torch.testing.assert_close(model.decode_codes(encoded.codes), model.decode(encoded.z), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.decode(encoded.z), model.reconstruct(x), rtol=0, atol=0)


@every_discrete
def test_codes_do_not_depend_on_the_batch(name):
    model, x = build(name), pictures(16)
    model(x)
    model.eval()
    alone = torch.cat([model.encode(x[i : i + 1]).codes for i in range(16)])
    assert torch.equal(alone, model.encode(x).codes)


def test_uint8_and_unit_floats_are_the_same_picture():
    model, x = build("fsq").eval(), pictures(3)
    torch.testing.assert_close(model(x).params, model(x.float() / 255).params)


def test_a_continuous_latent_samples_from_its_prior():
    model = build("gaussian").eval()
    one, same, other = (model.sample(3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (3, 3, 8, 8) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, same) and not torch.equal(one, other)


@every_discrete
def test_a_discrete_latent_has_no_prior_of_its_own(name):
    with pytest.raises(ValueError, match="train a token prior"):
        build(name).sample(1)


@pytest.mark.parametrize(("shape", "found"), [((2, 1, 8, 8), r"\(1, 8, 8\)"), ((2, 3, 16, 8), r"\(3, 16, 8\)")])
def test_pictures_of_another_shape_are_refused(shape, found):
    model = build("vq")
    for verb in (model, model.encode, model.reconstruct):
        with pytest.raises(ValueError, match=rf"{found}, expected \(3, 8, 8\)"):
            verb(torch.rand(shape))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 2, 3, 1, dtype=torch.long), r"grid \(2, 3, 1\), expected \(2, 2, 1\)"),
        (torch.full((1, 2, 2, 1), 16), "16 to 16, expected 0 to 15"),
        (torch.full((1, 2, 2, 1), -1), "-1 to -1, expected 0 to 15"),
    ],
)
def test_foreign_codes_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        build("vq").decode_codes(codes)


def test_a_continuous_latent_decodes_no_codes():
    with pytest.raises(ValueError, match="gaussian bottleneck has no codes"):
        build("gaussian").decode_codes(torch.zeros(1, 2, 2, 1, dtype=torch.long))


def test_a_size_that_the_backbone_cannot_halve_is_a_mistake_in_the_recipe():
    with pytest.raises(ValidationError, match="image_size 10 is not a multiple of 4"):
        build("vq", image_size=10)


@pytest.mark.parametrize(("channels", "likelihood"), [(1, "bernoulli"), (3, "categorical")])
def test_the_resnet_serves_every_likelihood(channels, likelihood):
    backbone = {"kind": "resnet", "width": 8, "multipliers": [1, 2], "residual_blocks": 1, "attention_grids": [4]}
    model = build("vq", backbone=backbone, channels=channels, likelihood={"kind": likelihood})
    x = pictures(2)[:, :channels]
    assert model.grid == (4, 4, 1)
    assert model.reconstruct(x).shape == x.shape
    assert model(x).terms["nll"].shape == (2,)


@every_bottleneck
def test_the_config_rebuilds_the_model(name):
    model = build(name)
    twin = Autoencoder(AutoencoderConfig.model_validate_json(model.config.model_dump_json()))
    twin.load_state_dict(model.state_dict())
    x = pictures(3)
    assert torch.equal(twin.eval()(x).params, model.eval()(x).params)


def test_evaluating_gives_every_part_its_own_mode_back():
    model = build("vq")
    model.encoder.eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(part.training for part in model.modules())
        raise KeyError
    assert model.training and model.decoder.training and not model.encoder.training
