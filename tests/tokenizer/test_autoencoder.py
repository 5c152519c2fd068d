import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError, create_model

from tests.tokenizer.members import examples, members, of_latent_prior, small
from tokenizer import (
    Autoencoder,
    AutoencoderConfig,
    AutoencoderPhase,
    BottleneckConfig,
    LatentPriorConfig,
    LikelihoodConfig,
    ObjectiveConfig,
    code_axes,
    evaluate,
    evaluating,
)

MODELS = {name: {"bottleneck": config.model_dump()} for name, config in examples(BottleneckConfig).items()}
LATENT_PRIORS: dict[Any, str] = {small(config): name for name, config in examples(LatentPriorConfig).items()}
MODELS |= {f"gaussian, {name}": MODELS["gaussian"] | of_latent_prior(config) for config, name in LATENT_PRIORS.items()}
MODELS |= {  # the prior that asks for the posterior gets that of the top level
    f"ladder, {name}": MODELS["ladder"] | of_latent_prior(config)
    for config, name in LATENT_PRIORS.items()
    if config.kind == "vamp"
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str, seed: int = 0, **changes) -> Any:
    recipe = {
        "image_size": 8,
        "channels": 3,
        "backbone": {"kind": "conv", "widths": [16, 32], "residual_blocks": 1, "residual_width": 16},
        "likelihood": {"kind": "normal"},
    }
    torch.manual_seed(seed)
    return Autoencoder(AutoencoderConfig.model_validate(recipe | MODELS[name] | changes))


DISCRETE = [name for name in MODELS if build(name).num_codes is not None]
CONTINUOUS = [name for name in MODELS if name not in DISCRETE]
RANDOM = [name for name in CONTINUOUS if "kl" in build(name).term_names()]
every_discrete = pytest.mark.parametrize("name", DISCRETE)
every_continuous = pytest.mark.parametrize("name", CONTINUOUS)
every_random = pytest.mark.parametrize("name", RANDOM)
every_certain = pytest.mark.parametrize("name", [name for name in MODELS if name not in RANDOM])


def learn(model: Autoencoder, x: torch.Tensor, step: int = 0) -> None:
    """One step's worth of statistics."""
    model.train()(x, step)
    model.after_step(step)


def generators(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def images(n: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Random colours in the quadrants of an image: easy to distinguish, easy to learn."""
    quadrants = torch.randint(256, (n, 3, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return quadrants.repeat_interleave(size // 2, 2).repeat_interleave(size // 2, 3)


@every_model
def test_shapes(name):
    model, x = build(name), images(5)
    out = model(x)
    rows, columns, quantizers = model.grid
    assert (rows, columns) == (2, 2) and quantizers == model.bottleneck.num_quantizers
    if name in DISCRETE or len(model.latent_shapes) == 1:
        assert out.bottleneck.z.shape == (5, model.bottleneck.dim, 2, 2)
    assert out.params.shape == model.reconstruct(x).shape == (5, 3, 8, 8)
    assert "nll" in out.terms and {term.shape for term in out.terms.values()} == {(5, 1)}
    assert {*out.terms, *out.batch_terms} == model.term_names()
    own = out.terms.keys() - out.bottleneck.terms.keys()  # "kl" may also be a term of a quantizer
    assert own == ({"nll", "kl"} if model.is_random else {"nll"})
    if name in DISCRETE:
        assert out.bottleneck.codes.shape == (5, *code_axes(model.code_grids))
        assert model.code_grids[-1].axes == (2, 2, quantizers)
        assert model.latent_prior is None
    else:
        assert out.bottleneck.codes is None and model.num_codes is None
        assert ("kl" in out.terms) == (name in RANDOM)


@every_random
def test_terms_of_several_draws(name):
    model, x = build(name), images(5)
    out = model(x, draws=3)
    assert out.params.shape == (15, 3, 8, 8)
    assert {term.shape for term in out.terms.values()} == {(5, 3)}
    for draw in range(3):  # draws of an image are adjacent
        nll = model.likelihood.nll(out.params[draw::3], x.float() / 255)
        torch.testing.assert_close(out.terms["nll"][:, draw], nll)


@pytest.mark.parametrize("name", [name for name in RANDOM if build(name)(images(1)).kl_elements is not None])
def test_the_sampled_kl_has_the_closed_form_as_its_mean(name):
    model, x = build(name).eval(), images(1)
    model.encoder[-1].weight.data *= 20
    # The closed form of a level is that for the draw of the levels above it.
    closed, sampled = model(x.expand(4000, -1, -1, -1)).terms["kl"], model(x, draws=4000).terms["kl"]
    assert abs(sampled.mean() - closed.mean()) < 5 * ((sampled.var() + closed.var()) / 4000) ** 0.5


@every_certain
def test_several_draws_of_a_latent_that_is_not_random_are_refused(name):
    with pytest.raises(ValueError, match="3 draws need a random latent"):
        build(name)(images(2), draws=3)


@every_model
def test_evaluation_repeats_itself_and_changes_no_buffer(name):
    model, x = build(name), images(5)
    learn(model, x)
    model.eval()
    before = {key: value.clone() for key, value in model.named_buffers()}
    first, second = (model(x, generator=generators(5)) for _ in range(2))
    model.after_step(0)
    assert torch.equal(first.params, second.params)
    assert all(torch.equal(first.terms[key], second.terms[key]) for key in first.terms)
    assert all(torch.equal(before[key], value) for key, value in model.named_buffers())


@every_model
def test_gradients_reach_every_parameter(name):
    model = build(name)
    # Untrained features are small: FSQ would round them all to zero, and hide the decoder's first weights behind that.
    model.encoder[-1].weight.data *= 10
    # The embedding of "no label" begins at zero, and hides the weights behind it.
    out = model(images(5), condition=torch.arange(5) if model.takes_labels else None)
    torch.stack([term.sum() for term in (out.terms | out.batch_terms).values()]).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@every_model
def test_overfits_a_few_images(name):
    model, batch = build(name), {"image": images(4)}
    weights = {key: 1.0 if key in ("nll", "kl") else 0.25 for key in model.term_names()}
    phase = AutoencoderPhase(model, ObjectiveConfig.model_validate({"weights": weights}))
    optimizer = torch.optim.Adam(phase.trained_parameters().values(), lr=3e-3)
    for step in range(150):
        optimizer.zero_grad()
        loss, _ = phase(batch, step)
        loss.backward()
        optimizer.step()
        phase.after_step(step)
    figures = evaluate(model, batch["image"], phase.objective, 150).figures
    assert figures["psnr"].mean() > 20  # a mean colour gives about 11 dB


@every_discrete
def test_decoding_the_codes_is_decoding_the_latent(name):
    model, x = build(name), images(5)
    learn(model, x)
    model.eval()
    encoded = model.encode(x)
    torch.testing.assert_close(model.decode_codes(encoded.codes), model.decode(encoded.z), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.decode(encoded.z), model.reconstruct(x), rtol=0, atol=0)


@every_discrete
def test_codes_do_not_depend_on_the_batch(name):
    model, x = build(name), images(16)
    learn(model, x)
    model.eval()
    alone = torch.cat([model.encode(x[i : i + 1]).codes for i in range(16)])
    assert torch.equal(alone, model.encode(x).codes)


def test_uint8_and_unit_floats_are_the_same_image():
    model, x = build("fsq").eval(), images(3)
    torch.testing.assert_close(model(x).params, model(x.float() / 255).params)


@every_continuous
def test_a_continuous_latent_samples_from_its_prior(name):
    model = build(name).eval()
    one, same, other = (model.sample(3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (3, 3, 8, 8) and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, same) and not torch.equal(one, other)


@every_discrete
def test_a_discrete_latent_has_no_prior_of_its_own(name):
    with pytest.raises(ValueError, match="train a token prior"):
        build(name).sample(1)


@pytest.mark.parametrize(("shape", "found"), [((2, 1, 8, 8), r"\(1, 8, 8\)"), ((2, 3, 16, 8), r"\(3, 16, 8\)")])
def test_images_of_another_shape_are_refused(shape, found):
    model = build("vq")
    for look in (model, model.encode, model.reconstruct):
        with pytest.raises(ValueError, match=rf"{found}, expected \(3, 8, 8\)"):
            look(torch.rand(shape))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 2, 3, 1, dtype=torch.long), r"grid \(2, 3, 1\), expected \(2, 2, 1\)"),
        (torch.full((1, 2, 2, 1), 512), "512 to 512, expected 0 to 511"),
        (torch.full((1, 2, 2, 1), -1), "-1 to -1, expected 0 to 511"),
    ],
)
def test_foreign_codes_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        build("vq").decode_codes(codes)


@every_continuous
def test_a_continuous_latent_decodes_no_codes(name):
    with pytest.raises(ValueError, match=f"{build(name).config.bottleneck.kind} bottleneck has no codes"):
        build(name).decode_codes(torch.zeros(1, 2, 2, 1, dtype=torch.long))


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_goes_all_the_way(name, dtype):
    model, x = build(name), images(3)
    learn(model, x)
    model = model.eval().to(dtype)
    assert model.reconstruct(x).shape == (3, 3, 8, 8)
    objective = ObjectiveConfig.model_validate({"weights": dict.fromkeys(model.term_names(), 1)})
    assert all(values.isfinite().all() for values in evaluate(model, x, objective, 0).figures.values())
    if name in DISCRETE:
        codes = model.encode(x).codes
        assert model.decode_codes(codes).isfinite().all()
    else:
        assert model.sample(2, torch.Generator().manual_seed(0)).isfinite().all()
        assert {term.dtype for term in model(x).terms.values()} == {torch.float32}


def test_a_size_that_the_backbone_cannot_halve_is_a_mistake_in_the_recipe():
    with pytest.raises(ValidationError, match="image_size 10 is not a multiple of 4"):
        build("vq", image_size=10)


@pytest.mark.parametrize(("channels", "likelihood"), [(1, "bernoulli"), (3, "categorical")])
def test_the_resnet_works_with_every_likelihood(channels, likelihood):
    backbone = {"kind": "resnet", "width": 8, "multipliers": [1, 2], "residual_blocks": 1, "attention_grids": [4]}
    model = build("vq", backbone=backbone, channels=channels, likelihood={"kind": likelihood})
    x = images(2)[:, :channels]
    assert model.grid == (4, 4, 1)
    assert model.reconstruct(x).shape == x.shape
    assert model(x).terms["nll"].shape == (2, 1)


@every_model
def test_a_model_that_has_learned_can_be_copied(name):
    """As the weight average does."""
    model, x = build(name), images(3)
    learn(model, x)
    twin = copy.deepcopy(model).eval()
    assert torch.equal(twin(x, generator=generators(3)).params, model.eval()(x, generator=generators(3)).params)


@every_model
def test_the_config_rebuilds_the_model(name):
    model = build(name)
    twin = Autoencoder(AutoencoderConfig.model_validate_json(model.config.model_dump_json()))
    twin.load_state_dict(model.state_dict())
    x = images(3)
    assert torch.equal(twin.eval().reconstruct(x), model.eval().reconstruct(x))
    if name in CONTINUOUS:
        one, other = (each.sample(2, torch.Generator().manual_seed(0)) for each in (twin, model))
        assert torch.equal(one, other)


def test_the_step_reaches_the_bottleneck():
    """Restarts every ten steps happen at those steps only, whether `forward` or `encode` has seen the images."""
    bottleneck = {"kind": "vq", "num_codes": 16, "dim": 8, "dead_code_threshold": 1e6, "kmeans_init": False}
    for look in ("forward", "encode"):
        for step, restarts in ((7, False), (10, True)):
            model = build("vq", bottleneck=bottleneck)
            getattr(model, look)(images(5), step)
            model.after_step(step)
            assert (model.bottleneck.codebooks[0].ema_count == 1e6).any() == restarts


def fingerprint_of(model: Autoencoder) -> tuple:
    return model.encode_config(), {name: tensor.clone() for name, tensor in model.encode_state().items()}


def same(one: tuple, other: tuple) -> bool:
    states_agree = one[1].keys() == other[1].keys() and all(torch.equal(one[1][key], other[1][key]) for key in one[1])
    return one[0] == other[0] and states_agree


@every_model
def test_a_new_option_with_a_default_changes_no_encode_config(name):
    for part in ("bottleneck", "backbone", "likelihood"):
        config = getattr(build(name).config, part)
        grown = create_model("Grown", __base__=type(config), added=(int, 5))
        assert grown(**config.model_dump()).encode_config() == config.encode_config()
        assert grown(**config.model_dump(), added=6).encode_config() != config.encode_config()


@every_model
def test_the_decoder_the_likelihood_and_the_latent_prior_decide_no_code(name):
    model = build(name)
    before = fingerprint_of(model)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.startswith(("decoder.", "likelihood.", "latent_prior.")):
                parameter.add_(1)
    assert same(fingerprint_of(model), before)
    for likelihood in examples(LikelihoodConfig).values():
        other = build(name, likelihood=likelihood.model_dump())
        assert other.encode_config() == before[0] | {"input_range": other.likelihood.inmap.__name__}


@every_model
def test_every_weight_of_the_encoder_and_every_tensor_that_decides_codes_counts(name):
    model = build(name)
    before = fingerprint_of(model)
    codebooks = getattr(model.bottleneck, "codebooks", ())
    for tensor in [*model.encoder.parameters(), *(codebook.embedding for codebook in codebooks)]:
        kept = tensor.detach().clone()
        tensor.data.view(-1)[-1] += 1
        assert not same(fingerprint_of(model), before)
        tensor.data.copy_(kept)
    assert same(fingerprint_of(model), before)


@every_discrete
def test_statistics_of_training_decide_no_code(name):
    model = build(name)
    before = fingerprint_of(model)
    decided = set(before[1])
    for key, buffer in model.bottleneck.named_buffers():
        if key.rsplit(".", 1)[-1] in ("ema_count", "ema_sum", "step_count", "step_sum", "candidates"):
            buffer.add_(1)
    assert same(fingerprint_of(model), before) and not any("ema" in key for key in decided)


def test_evaluating_gives_every_part_its_own_mode_back():
    model = build("vq")
    model.encoder.eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(part.training for part in model.modules())
        raise KeyError
    assert model.training and model.decoder.training and not model.encoder.training


@pytest.mark.parametrize(
    ("bottleneck", "message"), [("vq", "a transformer for a prior"), ("deterministic", "which learns from the KL")]
)
def test_a_learned_latent_prior_needs_a_random_latent(bottleneck, message):
    for kind in [member.model_fields["kind"].default for member in members(LatentPriorConfig)]:
        if kind == "standard_normal":
            build(bottleneck, latent_prior={"kind": kind})
        else:
            with pytest.raises(ValidationError, match=f"latent_prior: found '{kind}', .*{message}"):
                build(bottleneck, latent_prior={"kind": kind})
