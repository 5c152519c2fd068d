"""Labels as a condition: every kind in the union, in every backbone, and what the autoencoder makes of them."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tests.tokenizer.members import examples
from tokenizer import (
    Autoencoder,
    AutoencoderConfig,
    AutoencoderPhase,
    BackboneConfig,
    ConditionConfig,
    ObjectiveConfig,
    evaluate,
    evaluating,
)
from tokenizer.backbones import build_decoder, build_encoder
from tokenizer.conditions import Concatenate, ConditionalNorm, Film, LabelEmbedding
from tokenizer.latent_priors import LatentPriorConfig

BACKBONES, CONDITIONS, LATENT_PRIORS = (
    examples(union) for union in (BackboneConfig, ConditionConfig, LatentPriorConfig)
)
every_backbone = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
every_condition = pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
every_latent_prior = pytest.mark.parametrize("latent_prior", LATENT_PRIORS.values(), ids=LATENT_PRIORS)
SIZE = 8
LABELS = torch.tensor([0, 2, 1, -1, 2])


def build(condition: Any, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    recipe = {
        "image_size": SIZE,
        "channels": 1,
        "backbone": {"kind": "mlp", "widths": (16,)},
        "bottleneck": {"kind": "gaussian", "dim": 2},
        "likelihood": {"kind": "bernoulli"},
        "condition": condition and condition.model_dump(),
    }
    return Autoencoder(AutoencoderConfig.model_validate(recipe | changes)).eval()


def trained_null(condition: Any, **changes: Any) -> Any:
    """A model whose embedding of "no label" is not at its start any more."""
    model = build(condition, **changes)
    torch.nn.init.normal_(model.condition.embedding.weight)
    return model


def images(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def streams(n: int = 5) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


@every_backbone
@every_condition
def test_the_embedding_reaches_both_networks_and_both_give_it_a_gradient(backbone, condition):
    torch.manual_seed(0)  # a narrow layer may be dead for an image
    grid = backbone.grid_side(SIZE)
    networks = build_encoder(backbone, 1, 3, SIZE, condition), build_decoder(backbone, 3, 2, SIZE, condition)
    inputs, shapes = (images(2), torch.rand(2, 3, grid, grid)), ((2, 3, grid, grid), (2, 2, SIZE, SIZE))
    for network, x, shape in zip(networks, inputs, shapes, strict=True):
        embedded = torch.randn(2, condition.dim, requires_grad=True)
        found = network(x, embedded)
        assert found.shape == shape and not torch.allclose(found, network(x, embedded + 1))
        found[0].sum().backward()
        assert embedded.grad is not None and embedded.grad[0].abs().sum() > 0
        assert (embedded.grad[1] == 0).all()  # another image's label
        parameters = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)


@every_condition
def test_two_labels_give_two_posteriors_and_two_images(condition):
    model, x, z = build(condition), images(1), torch.zeros(1, 2, 1, 1)
    zero, one = torch.tensor([0]), torch.tensor([1])
    assert not torch.allclose(model.encode(x, condition=zero).z, model.encode(x, condition=one).z)
    assert not torch.allclose(model.decode(z, zero), model.decode(z, one))
    assert not torch.allclose(model.reconstruct(x, zero), model.reconstruct(x, one))
    drawn = [model.sample(1, torch.Generator().manual_seed(0), label) for label in (zero, one)]
    assert not torch.allclose(*drawn)


@every_condition
def test_the_label_of_every_image_gets_a_gradient_and_no_other_label(condition):
    model = build(condition)
    model(images(2), condition=torch.tensor([0, -1])).params.sum().backward()
    touched = model.condition.embedding.weight.grad.abs().sum(1) > 0
    assert touched.tolist() == [True, False, False, True]


@every_condition
def test_no_labels_are_labels_of_minus_one(condition):
    model, x = trained_null(condition), images()
    none, minus = None, torch.full((5,), -1)
    assert torch.equal(model(x, generator=streams()).params, model(x, generator=streams(), condition=minus).params)
    assert torch.equal(model.reconstruct(x, none), model.reconstruct(x, minus))
    z = torch.randn(5, 2, 1, 1)
    assert torch.equal(model.decode(z, none), model.decode(z, minus))
    assert not torch.allclose(model.decode(z), model.decode(z, LABELS.clamp(min=0)))


@every_condition
def test_labels_follow_their_images(condition):
    model, x, order = trained_null(condition), images(), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model.reconstruct(x, LABELS)[order], model.reconstruct(x[order], LABELS[order]))
    alone = torch.cat([model.reconstruct(x[i : i + 1], LABELS[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(model.reconstruct(x, LABELS), alone)


@every_condition
def test_every_draw_of_an_image_has_its_label(condition):
    model, x = trained_null(condition), images()
    out = model(x, draws=3, generator=streams(), condition=LABELS)
    z = out.bottleneck.posterior.sample(3, streams()).flatten(0, 1)
    torch.testing.assert_close(model.likelihood.mean(out.params), model.decode(z, LABELS.repeat_interleave(3)))


@every_condition
def test_figures_of_held_out_images_depend_on_their_own_label_only(condition):
    model, x = trained_null(condition), images()
    objective = ObjectiveConfig.model_validate({"weights": dict.fromkeys(model.term_names(), 1)})
    found = evaluate(model, x, objective, 0, streams(), LABELS).figures
    other = evaluate(model, x, objective, 0, streams(), LABELS.where(torch.arange(5) != 1, 0)).figures
    for name in ("nll", "kl", "loss", "psnr"):
        assert (found[name] == other[name]).tolist() == [True, False, True, True, True]


@every_condition
def test_a_phase_trains_with_the_labels_of_its_batch(condition):
    """Black is labelled 0 and white 1; with a latent that costs a lot only the label can say which it is."""
    model = build(condition)
    phase = AutoencoderPhase(model, ObjectiveConfig.model_validate({"weights": {"nll": 1, "kl": 100}}))
    labels = torch.arange(20) % 2
    batch = {"image": labels.float()[:, None, None, None].expand(-1, 1, SIZE, SIZE), "label": labels}
    optimizer = torch.optim.Adam(phase.trained_parameters().values(), lr=1e-2)
    for step in range(60):
        optimizer.zero_grad()
        phase(batch, step)[0].backward()
        optimizer.step()
    drawn = model.sample(20, torch.Generator().manual_seed(0), labels)
    assert drawn[::2].max() < 0.2 and drawn[1::2].min() > 0.8


@every_condition
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_conditional_model_in_half_precision_goes_all_the_way(condition, dtype):
    for backbone in ({"kind": "mlp", "widths": (16,)}, {"kind": "conv", "widths": (4, 4)}):
        model = build(condition, backbone=backbone).to(dtype)
        assert model.reconstruct(images(), LABELS).isfinite().all()
        assert model.sample(5, torch.Generator().manual_seed(0), LABELS).isfinite().all()


@every_condition
def test_the_condition_decides_latents_and_so_is_part_of_the_fingerprint(condition):
    model = build(condition)
    assert model.encode_config()["condition"]["kind"] == condition.kind
    quiet = condition.model_copy(update={"dropout": 0.5})
    assert build(quiet).encode_config() == model.encode_config()
    assert "condition.embedding.weight" in model.encode_state()


@pytest.mark.parametrize("backbone", [{"kind": kind} for kind in ("conv", "mlp", "resnet")], ids=str)
def test_a_model_without_a_condition_is_what_it_was(backbone):
    model = build(None, backbone=backbone)
    assert model.condition is None and "condition" not in model.encode_config()
    assert not any("condition" in name or "film" in name for name in model.state_dict())


def test_a_model_without_a_condition_refuses_labels_and_its_phase_does_not_pass_them_on():
    model, x = build(None), images()
    for look in (model, model.encode, model.reconstruct):
        with pytest.raises(ValueError, match="the model has no condition"):
            look(x, condition=LABELS)
    phase = AutoencoderPhase(model, ObjectiveConfig.model_validate({"weights": {"nll": 1, "kl": 1}}))
    torch.manual_seed(0)
    labelled = phase({"image": x, "label": LABELS}, 0)[0]
    torch.manual_seed(0)
    assert torch.equal(labelled, phase({"image": x}, 0)[0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "labels run from 0 to 3, expected 0 to 2, or -1 for none"),
        (torch.tensor([-2, 0]), "labels run from -2 to 0"),
        (torch.tensor([0]), r"shape \(1,\), expected 2 integers"),
        (torch.tensor([0.0, 1.0]), "torch.float32 .* expected 2 integers"),
    ],
)
def test_impossible_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        build(CONDITIONS["film"]).encode(images(2), condition=labels)


def test_labels_of_any_integer_type_are_the_same_labels():
    model, x = build(CONDITIONS["film"]), images()
    for dtype in (torch.int8, torch.int32):
        assert torch.equal(model.reconstruct(x, LABELS.to(dtype)), model.reconstruct(x, LABELS))


def embedding(dropout: float) -> LabelEmbedding:
    return LabelEmbedding(
        TypeAdapter(ConditionConfig).validate_python({"kind": "film", "num_classes": 3, "dropout": dropout})
    )


def test_training_drops_the_share_of_labels_that_it_was_told():
    torch.manual_seed(0)
    layer, labels = embedding(0.3), torch.zeros(4000, dtype=torch.long)
    dropped = (layer(labels, 4000) == layer.embedding.weight[-1]).all(1).float().mean()
    assert abs(dropped - 0.3) < 0.04
    kept = layer.eval()(labels, 4000)
    assert (kept == layer.embedding.weight[0]).all()


def test_a_label_is_dropped_for_encoder_and_decoder_alike():
    condition = CONDITIONS["film"].model_copy(update={"dropout": 0.5})
    model, x = build(condition).train(), images(1).expand(50, -1, -1, -1)
    seen: dict[str, list[torch.Tensor]] = {"encoder": [], "decoder": []}
    for part, found in seen.items():
        getattr(model, part).register_forward_pre_hook(lambda _, inputs, found=found: found.append(inputs[1]))
    model(x, condition=torch.ones(50, dtype=torch.long))
    model.reconstruct(x, torch.ones(50, dtype=torch.long))
    for encoder, decoder in zip(*seen.values(), strict=True):
        assert torch.equal(encoder, decoder) and len(encoder.unique(dim=0)) == 2


def test_evaluating_drops_no_label():
    model = build(CONDITIONS["film"].model_copy(update={"dropout": 0.9})).train()
    with evaluating(model):
        kept = model.reconstruct(images(), LABELS.clamp(min=0))
    assert torch.equal(kept, model.eval().reconstruct(images(), LABELS.clamp(min=0)))


def test_no_label_begins_at_zero():
    assert (embedding(0.0)(None, 2) == 0).all()


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 3, 5)])
def test_film_scales_and_shifts_every_channel(shape):
    layer, x, embedded = Film(4, 6), torch.randn(shape), torch.randn(2, 4)
    gamma, beta = layer.linear(embedded).split(6, dim=1)
    expected = torch.stack([x[i, c] * (1 + gamma[i, c]) + beta[i, c] for i in range(2) for c in range(6)])
    torch.testing.assert_close(layer(x, embedded), expected.view(shape))


@pytest.mark.parametrize(("shape", "groups"), [((2, 6), 1), ((2, 6, 3, 5), 1), ((2, 6, 3, 5), 3)])
def test_a_conditional_norm_is_a_norm_whose_gain_and_bias_the_embedding_gives(shape, groups):
    layer, x, embedded = ConditionalNorm(4, 6, groups), 7 * torch.randn(shape) + 3, torch.randn(2, 4)
    gamma, beta = layer.film.linear(embedded).split(6, dim=1)
    for i in range(2):
        expected = torch.nn.functional.group_norm(x[i : i + 1], groups, 1 + gamma[i], beta[i], eps=1e-6)
        torch.testing.assert_close(layer(x, embedded)[i : i + 1], expected)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5)])
def test_concatenation_appends_the_embedding_at_every_position(shape):
    x, embedded = torch.randn(shape), torch.randn(2, 4)
    found = Concatenate()(x, embedded)
    assert torch.equal(found[:, :3], x)
    for position in found[:, 3:].flatten(2).unbind(2) if len(shape) > 2 else [found[:, 3:]]:
        assert torch.equal(position, embedded)


def test_the_number_of_classes_must_be_given():
    with pytest.raises(ValidationError, match="num_classes"):
        TypeAdapter(ConditionConfig).validate_python({"kind": "film"})


@every_condition
def test_importance_weights_are_those_of_the_label(condition):
    model, x = trained_null(condition), images()
    with torch.no_grad():
        log_weights = model.importance_weights(x, LABELS)(3, streams())
        terms = model(x, draws=3, generator=streams(), condition=LABELS).terms
    torch.testing.assert_close(log_weights, -terms["nll"] - terms["kl"])


@every_condition
@every_latent_prior
def test_every_latent_prior_goes_with_a_condition(condition, latent_prior):
    model = trained_null(condition, latent_prior=latent_prior.model_dump())
    out = model(images(), condition=LABELS)
    assert out.terms["kl"].isfinite().all()
    assert model.sample(5, torch.Generator().manual_seed(0), LABELS).isfinite().all()


CONDITIONAL_FLOW = {"kind": "flow", "conditional": True, "widths": (8,)}


@every_condition
def test_a_conditional_latent_prior_is_that_of_the_label(condition):
    """In the KL, in the importance weights, and in samples."""
    model, x = trained_null(condition, latent_prior=CONDITIONAL_FLOW), images()
    with torch.no_grad():
        out = model(x, draws=3, generator=streams(), condition=LABELS)
        log_weights = model.importance_weights(x, LABELS)(3, streams())
        prior, posterior = model.latent_distribution(LABELS), out.bottleneck.posterior
        drawn = [model.sample(1, torch.Generator().manual_seed(0), torch.tensor([label])) for label in (0, 1)]
    torch.testing.assert_close(out.terms["kl"], posterior.log_prob(out.z) - prior.log_prob(out.z))
    torch.testing.assert_close(log_weights, -out.terms["nll"] - out.terms["kl"])
    assert not torch.allclose(prior.log_prob(out.z), model.latent_distribution().log_prob(out.z))
    assert not torch.allclose(*drawn)


def test_a_left_out_label_is_left_out_of_encoder_decoder_and_prior_alike():
    condition = CONDITIONS["film"].model_copy(update={"dropout": 0.5})
    model = trained_null(condition, latent_prior=CONDITIONAL_FLOW).train()
    priors = [model.eval().latent_distribution(labels) for labels in (torch.zeros(40, dtype=torch.int64), None)]
    with torch.no_grad():
        out = model.train()(images(40), condition=torch.zeros(40, dtype=torch.int64))
        given, left_out = (prior.log_prob(out.z) for prior in priors)
        found = out.latent_prior.log_prob(out.z)
    embedded = out.latent_prior.condition
    dropped = (embedded == model.condition.embedding.weight[-1]).all(1)
    assert 5 < dropped.sum() < 35
    torch.testing.assert_close(found, torch.where(dropped[:, None], left_out, given))


def test_a_conditional_latent_prior_needs_a_condition():
    with pytest.raises(ValidationError, match=r"latent_prior\.conditional: found true without labels"):
        build(None, latent_prior=CONDITIONAL_FLOW)


@pytest.mark.parametrize(
    ("prior", "dropout", "trained", "needs"),
    [
        ("standard_normal", 0.0, False, True),
        ("standard_normal", 0.0, True, False),
        ("standard_normal", 0.1, False, False),
        ("vamp", 0.0, True, True),
    ],
)
def test_a_model_that_saw_no_image_without_a_label_needs_labels(prior, dropout, trained, needs):
    """Of partly labelled data the embedding of "no label" learns; a VampPrior trains it in the encoder alone."""
    content = {
        "image_size": 8,
        "channels": 1,
        "backbone": {"kind": "mlp", "widths": [4]},
        "condition": {"kind": "film", "num_classes": 3, "dropout": dropout},
        "bottleneck": {"kind": "gaussian", "dim": 2},
        "latent_prior": {"kind": prior},
        "likelihood": {"kind": "bernoulli"},
    }
    model = Autoencoder(AutoencoderConfig.model_validate(content))
    assert model.condition is not None
    if trained:
        torch.nn.init.ones_(model.condition.embedding.weight[-1])
    assert model.needs_labels is needs
    content["condition"] = None
    assert not Autoencoder(AutoencoderConfig.model_validate(content)).needs_labels
