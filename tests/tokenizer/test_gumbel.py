"""The Gumbel-softmax bottleneck against torch's own relaxation and distributions."""

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, distributions, nn
from torch.nn import functional as F

from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderPhase, BottleneckConfig, ObjectiveConfig, evaluate
from tokenizer.bottlenecks import build_bottleneck

K, DIM, SIDE = 11, 5, 4


def build(temperature: Any = 1.0, **options) -> Any:
    torch.manual_seed(0)
    content = {"kind": "gumbel", "num_codes": K, "dim": DIM, "temperature": temperature, **options}
    bottleneck: Any = build_bottleneck(TypeAdapter(BottleneckConfig).validate_python(content), (SIDE, SIDE))
    nn.init.normal_(bottleneck.bias)
    return bottleneck


def logits(spread: float = 2.0) -> Tensor:
    return spread * torch.randn(3, K, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def with_noise(monkeypatch, noise: Tensor) -> None:
    monkeypatch.setattr("tokenizer.bottlenecks.gumbel.gumbel", lambda *_: noise)


def noise_of_torch(h: Tensor) -> Tensor:
    """What `torch.nn.functional.gumbel_softmax` adds after the same seed."""
    torch.manual_seed(7)
    return -torch.empty_like(h).exponential_().log()


def torch_shares(h: Tensor, temperature: float, hard: bool = False) -> Tensor:
    torch.manual_seed(7)
    return F.gumbel_softmax(h, temperature, hard, dim=1)


def first_layer(bottleneck: Any) -> nn.Conv2d:
    """The 1x1 convolution with which the decoder of DALL-E's code begins."""
    layer = nn.Conv2d(K, DIM, 1)
    with torch.no_grad():
        layer.weight.copy_(bottleneck.weight.T[:, :, None, None])
        layer.bias.copy_(bottleneck.bias)
    return layer


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_training_is_torchs_relaxation_before_the_first_layer_of_dalle(monkeypatch, temperature, straight_through):
    """Values and gradients: of the features, of the embeddings and of the bias."""
    bottleneck = build(temperature, straight_through=straight_through)
    layer, ours, theirs = first_layer(bottleneck), logits().requires_grad_(), logits().requires_grad_()
    with_noise(monkeypatch, noise_of_torch(ours.detach()))
    z, expected = bottleneck(ours).z, layer(torch_shares(theirs, temperature, straight_through))
    torch.testing.assert_close(z, expected)
    upstream = torch.randn(z.shape)
    z.backward(upstream)
    expected.backward(upstream)
    assert layer.weight.grad is not None and layer.bias is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(bottleneck.weight.grad, layer.weight.grad[:, :, 0, 0].T)
    torch.testing.assert_close(bottleneck.bias.grad, layer.bias.grad)


def test_as_the_temperature_falls_the_relaxation_becomes_the_code_of_the_noisy_logits(monkeypatch):
    h = logits()
    noise = noise_of_torch(h)
    with_noise(monkeypatch, noise)
    single = build().codes_to_latents((h + noise).argmax(1)[..., None])
    gaps = [(build(temperature)(h).z - single).abs().max().item() for temperature in (1.0, 0.1, 0.01, 1e-4)]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.1 and gaps[-1] < 1e-5


def test_the_noise_draws_each_code_as_often_as_its_probability():
    bottleneck = build(straight_through=True)
    h = logits()[:1, :, :1, :1]
    z = bottleneck(h.expand(20_000, -1, -1, -1)).z[:, :, 0, 0]
    codes = torch.cdist(z, bottleneck.embedding[0]).argmin(1)
    expected = 20_000 * h.flatten().softmax(0)
    counts = torch.bincount(codes, minlength=K)
    assert ((counts - expected).abs() < 5 * expected.sqrt() + 1).all()


def test_kl_is_that_of_categoricals_from_uniform_in_nats_per_image():
    h = logits()
    q = distributions.Categorical(logits=h.double().movedim(1, -1))
    p = distributions.Categorical(probs=torch.full_like(q.probs, 1 / K))
    expected = distributions.kl_divergence(q, p).sum((1, 2))[:, None].float()
    for bottleneck in (build(1.0), build(0.05), build(1.0, straight_through=True), build().eval()):
        torch.testing.assert_close(bottleneck(h).terms["kl"], expected)


def test_kl_ends_at_zero_and_at_the_logarithm_of_the_number_of_codes():
    certain = torch.full((1, K, SIDE, SIDE), -1e4)
    certain[:, 3] = 1e4
    for h, expected in ((torch.zeros_like(certain), 0.0), (certain, SIDE**2 * math.log(K))):
        h.requires_grad_()
        kl = build()(h).terms["kl"]
        assert kl.item() == pytest.approx(expected, abs=1e-4)
        kl.sum().backward()
        assert h.grad is not None and h.grad.isfinite().all()


def test_evaluation_has_no_noise_and_makes_no_one_hot_vectors(monkeypatch):
    bottleneck, h = build().eval(), logits()
    with_noise(monkeypatch, torch.tensor(torch.nan))
    monkeypatch.setattr(F, "conv2d", None)
    out = bottleneck(h)
    assert torch.equal(out.codes[..., 0], h.argmax(1))
    assert torch.equal(out.z, bottleneck.codes_to_latents(out.codes))


def test_the_latent_of_a_code_is_the_first_layer_of_its_one_hot_vector():
    bottleneck, codes = build(), torch.arange(K).view(1, K, 1, 1)
    one_hot = F.one_hot(codes[..., 0], K).movedim(-1, 1).float()
    torch.testing.assert_close(bottleneck.codes_to_latents(codes), first_layer(bottleneck)(one_hot))
    torch.testing.assert_close(bottleneck.embedding[0], bottleneck.codes_to_latents(codes)[0, :, :, 0].T)


def test_codes_of_training_are_those_of_evaluation():
    bottleneck, h = build(), logits()
    assert torch.equal(bottleneck(h).codes, bottleneck.eval()(h).codes)


SCHEDULE = {"kind": "cosine", "start": 1.0, "end": 0.25, "steps": 100}


def test_the_temperature_of_a_step_is_that_of_the_schedule(monkeypatch):
    h = logits()
    with_noise(monkeypatch, noise_of_torch(h))
    scheduled = build(SCHEDULE)
    for step in (0, 50, 100, 500):
        temperature = 0.25 + 0.75 * (1 + math.cos(math.pi * min(step, 100) / 100)) / 2
        torch.testing.assert_close(scheduled(h, step).z, build(temperature)(h).z)


def test_the_temperature_of_the_last_step_is_kept_and_is_that_of_relaxed_latents(monkeypatch):
    h, bottleneck = logits(), build(SCHEDULE)
    with_noise(monkeypatch, noise_of_torch(h))
    bottleneck.after_step(50)
    loaded = build(SCHEDULE)
    loaded.load_state_dict(bottleneck.state_dict())
    for each in (bottleneck, loaded):
        torch.testing.assert_close(each.eval()(h).relaxed(None), build(0.625)(h).z)


def test_relaxed_latents_of_an_image_depend_on_its_generator_only():
    out = build().eval()(logits())
    alone = build().eval()(logits()[1:2])
    streams = [torch.Generator().manual_seed(i) for i in range(3)]
    together = out.relaxed(streams)
    torch.testing.assert_close(alone.relaxed([torch.Generator().manual_seed(1)]), together[1:2])


def test_half_precision_features_are_relaxed_in_float32():
    bottleneck, h = build(), logits().bfloat16()
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        found = bottleneck(h)
    torch.manual_seed(3)
    expected = bottleneck(h.float())
    assert found.z.dtype == torch.float32 and torch.equal(found.z, expected.z)
    assert torch.equal(found.terms["kl"], expected.terms["kl"])


@pytest.mark.parametrize("temperature", [0, -1, {"kind": "linear", "start": 1, "end": 0, "steps": 10}])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValidationError, match="expected a number above 0 at every step"):
        build(temperature)


def dvae(**options) -> Any:
    torch.manual_seed(0)
    content = {
        "image_size": 8,
        "channels": 3,
        "backbone": {"kind": "dvae", "width": 8, "groups": 2, "blocks_per_group": 1},
        "bottleneck": {"kind": "gumbel", "num_codes": K, "dim": DIM, **options},
        "likelihood": {"kind": "logit_laplace"},
    }
    return Autoencoder(AutoencoderConfig.model_validate(content))


OBJECTIVE = ObjectiveConfig.model_validate({"weights": {"nll": 1, "kl": 6.6}})


def test_the_loss_is_the_papers():
    """The nll per number of an image, and 6.6 / 12 of the mean KL of 4 * 4 positions, for 8 * 8 * 3 numbers."""
    model, batch = dvae(), {"image": torch.rand(6, 3, 8, 8)}
    torch.manual_seed(5)
    loss, metrics = AutoencoderPhase(model, OBJECTIVE)(batch, 0)
    torch.manual_seed(5)
    out = model(batch["image"])
    q = distributions.Categorical(logits=model.features(batch["image"]).movedim(1, -1))
    kl = (math.log(K) - q.entropy()).mean()
    torch.testing.assert_close(loss, out.terms["nll"].mean() / 192 + 6.6 / 12 * kl)
    assert {"nll", "kl", "perplexity_batch", "nonfinite_vectors"} <= metrics.keys()


@pytest.mark.parametrize("straight_through", [False, True])
def test_one_step_moves_every_parameter_of_encoder_bottleneck_and_decoder(straight_through):
    model = dvae(straight_through=straight_through)
    phase = AutoencoderPhase(model, OBJECTIVE)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(phase.trained_parameters().values(), lr=1e-3)
    phase({"image": torch.rand(6, 3, 8, 8)}, 0)[0].backward()
    optimizer.step()
    phase.after_step(0)
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


def test_the_gap_between_relaxed_and_single_codes_is_a_figure_of_evaluation():
    model, images = dvae(temperature=0.7), torch.rand(6, 3, 8, 8)
    nn.init.normal_(model.bottleneck.weight)  # so that codes differ
    streams = [torch.Generator().manual_seed(i) for i in range(6)]
    figures = evaluate(model, images, OBJECTIVE, 0, streams).figures
    torch.testing.assert_close(figures["relaxation_gap"], figures["nll"] - figures["nll_relaxed"])
    streams = [torch.Generator().manual_seed(i) for i in range(6)]
    with torch.no_grad():
        model.eval()
        z = model.encode(images).relaxed(streams)
        nll = model.likelihood.nll(model.decoder(z), images)
        hard = model.likelihood.nll(model.decoder(model.encode(images).z), images)
    torch.testing.assert_close(figures["nll_relaxed"], nll)
    torch.testing.assert_close(figures["nll"], hard)
    assert (figures["psnr"] != figures["psnr_relaxed"]).all()


def test_as_the_temperature_falls_and_logits_are_sure_the_gap_closes():
    gaps = []
    for spread in (1.0, 1e4):
        model = dvae(temperature=1 / 16)
        with torch.no_grad():
            model.encoder[-1].weight.mul_(spread)
            nn.init.normal_(model.bottleneck.weight)
        gaps.append(evaluate(model, torch.rand(6, 3, 8, 8), OBJECTIVE, 0).figures["relaxation_gap"].abs().mean().item())
    assert gaps[1] < 0.05 * gaps[0]


def test_a_model_whose_training_sees_single_codes_only_has_no_gap():
    content = {**dvae().config.model_dump(), "bottleneck": {"kind": "vq", "num_codes": 8, "dim": 4}}
    model = Autoencoder(AutoencoderConfig.model_validate(content))
    objective = ObjectiveConfig.model_validate({"weights": {"nll": 1, "commitment": 0.25}})
    assert not {"relaxation_gap", "nll_relaxed"} & evaluate(model, torch.rand(2, 3, 8, 8), objective, 0).figures.keys()
