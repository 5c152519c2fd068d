from itertools import product

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tokenizer.bottlenecks import BottleneckConfig, FSQConfig, GaussianConfig, VQConfig, build_bottleneck

MEMBERS = {
    "vq": VQConfig(num_codes=16, dim=6, kmeans_init=False),
    "vq kmeans": VQConfig(num_codes=16, dim=6, restart_below=1, restart_every=1),
    "vq cosine": VQConfig(num_codes=16, dim=6, distance="cosine"),
    "vq rotation": VQConfig(num_codes=16, dim=6, gradient="rotation"),
    "vq residual": VQConfig(num_codes=16, dim=6, depth=3),
    "vq residual rotation": VQConfig(num_codes=16, dim=6, depth=3, gradient="rotation"),
    "fsq": FSQConfig(levels=(8, 5, 2)),
    "gaussian": GaussianConfig(dim=3),
}
DISCRETE = [name for name in MEMBERS if name != "gaussian"]


def a_batch(name, trained=True):
    torch.manual_seed(0)
    bottleneck = build_bottleneck(MEMBERS[name])
    h = torch.randn(2, bottleneck.features_in, 4, 5)
    if trained:
        for step in range(2):
            bottleneck(h + torch.randn_like(h), step)
    return bottleneck, h


@pytest.mark.parametrize("name", MEMBERS)
def test_configuration_survives_json(name):
    adapter = TypeAdapter(BottleneckConfig)
    assert adapter.validate_json(adapter.dump_json(MEMBERS[name])) == MEMBERS[name]


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("training", [True, False])
def test_shapes(name, training):
    bottleneck, h = a_batch(name)
    out = bottleneck.train(training)(h, 2)
    assert out.z.shape == (2, bottleneck.dim, 4, 5)
    assert all(term.shape == (2,) for term in out.terms.values())
    if bottleneck.depth:
        assert out.codes.shape == (2, 4, 5, bottleneck.depth)
        assert out.codes.min() >= 0 and out.codes.max() < bottleneck.num_codes
    else:
        assert out.codes is None and bottleneck.num_codes is None


@pytest.mark.parametrize("name", MEMBERS)
def test_evaluation_is_deterministic_and_changes_no_buffer(name):
    bottleneck, h = a_batch(name)
    before = {key: value.clone() for key, value in bottleneck.eval().named_buffers()}
    first, second = bottleneck(h, 3), bottleneck(h, 4)
    assert torch.equal(first.z, second.z)
    assert all(torch.equal(value, before[key]) for key, value in bottleneck.named_buffers())


@pytest.mark.parametrize("name", DISCRETE)
def test_codes_give_back_the_latents(name):
    bottleneck, h = a_batch(name)
    out = bottleneck.eval()(h)
    assert torch.equal(bottleneck.codes_to_latents(out.codes), out.z)


@pytest.mark.parametrize("name", MEMBERS)
def test_gradients_of_the_latents_reach_the_features(name):
    bottleneck, h = a_batch(name)
    h.requires_grad_()
    z = bottleneck(h, 2).z
    (z * torch.randn_like(z)).sum().backward()
    assert h.grad.isfinite().all() and (h.grad.abs().sum(dim=(0, 2, 3)) > 0)[: bottleneck.dim].all()


@pytest.mark.parametrize("name", [name for name in MEMBERS if name != "fsq"])
def test_gradients_of_the_terms_reach_the_features(name):
    bottleneck, h = a_batch(name)
    h.requires_grad_()
    sum(term.sum() for term in bottleneck(h, 2).terms.values()).backward()
    assert h.grad.isfinite().all() and h.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MEMBERS)
def test_terms_are_sums_over_one_image(name):
    bottleneck, h = a_batch(name)
    bottleneck.eval()
    for term, value in bottleneck(h).terms.items():
        torch.testing.assert_close(bottleneck(h[1:]).terms[term], value[1:])
        torch.testing.assert_close(bottleneck(h.repeat(1, 1, 2, 1)).terms[term], 2 * value)


@pytest.mark.parametrize("name", MEMBERS)
def test_half_precision_features_are_bottlenecked_in_float32(name):
    bottleneck, h = a_batch(name)
    bottleneck.eval()
    half = h.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = bottleneck(half)
    reference = bottleneck(half.float())
    assert out.z.dtype == torch.float32
    assert torch.equal(out.z, reference.z)


def test_fsq_codes_and_latents_are_one_to_one():
    bottleneck = build_bottleneck(FSQConfig(levels=(8, 5, 5, 2)))
    codes = torch.arange(400).view(4, 10, 10, 1)
    z = bottleneck.codes_to_latents(codes)
    assert len(z.movedim(1, -1).reshape(-1, 4).unique(dim=0)) == 400
    # From any latent, features that reach it are found by inverting the bound: atanh((z w + o) / l) - atanh(o / l).
    width, half_range = (bottleneck.levels // 2).view(4, 1, 1), ((bottleneck.levels - 1) * 1.001 / 2).view(4, 1, 1)
    offset = (bottleneck.levels % 2 == 0).view(4, 1, 1) * 0.5
    features = ((z * width + offset) / half_range).atanh() - (offset / half_range).atanh()
    assert torch.equal(bottleneck(features).codes, codes)


def test_fsq_is_the_papers_formula():
    levels = (8, 5, 4)
    h = 2 * torch.randn(2, 3, 4, 4)
    out = build_bottleneck(FSQConfig(levels=levels))(h)
    expected = torch.zeros(2, 4, 4, dtype=torch.long)
    for channel, count in enumerate(levels):
        half_range, offset = (count - 1) * 1.001 / 2, 0.0 if count % 2 else 0.5
        shift = torch.tensor(offset / half_range).atanh()
        digit = ((h[:, channel] + shift).tanh() * half_range - offset).round()
        torch.testing.assert_close(out.z[:, channel], digit / (count // 2))
        expected += (digit.long() + count // 2) * (1, 8, 40)[channel]
    assert torch.equal(out.codes[..., 0], expected)


def test_fsq_agrees_with_vector_quantize_pytorch():
    peer = pytest.importorskip("vector_quantize_pytorch")
    h = torch.randn(2, 3, 8, 8)
    z, codes = peer.FSQ(levels=[8, 5, 4])(h)
    out = build_bottleneck(FSQConfig(levels=(8, 5, 4)))(h)
    torch.testing.assert_close(out.z, z)
    assert torch.equal(out.codes[..., 0], codes.long())


def test_fsq_sends_zero_features_to_zero():
    bottleneck = build_bottleneck(FSQConfig(levels=(8, 7, 2)))
    assert bottleneck(torch.zeros(1, 3, 1, 1)).z.eq(0).all()


def test_gaussian_kl_is_torchs():
    bottleneck, h = a_batch("gaussian")
    mean, log_variance = h.chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(bottleneck(h).terms["kl"], expected)


def test_gaussian_draws_have_the_posteriors_moments():
    bottleneck = build_bottleneck(GaussianConfig(dim=1))
    h = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 100, 100)
    torch.manual_seed(0)
    z = bottleneck(h).z
    assert abs(z.mean() - 2) < 0.03 and abs(z.std() - torch.tensor(-0.5).exp()) < 0.03


def test_gaussian_prior_is_the_generators():
    bottleneck = build_bottleneck(GaussianConfig(dim=3))
    first, second = (bottleneck.sample_prior(2, 4, 5, torch.Generator().manual_seed(7)) for _ in range(2))
    assert first.shape == (2, 3, 4, 5) and torch.equal(first, second)


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "vq", "depth": 2, "distance": "cosine"}, {"kind": "vq", "codes": 8}, {"kind": "fsq", "levels": [1]}],
)
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(BottleneckConfig).validate_python(wrong)


def test_every_pair_of_distance_and_gradient_builds():
    for distance, gradient in product(("euclidean", "cosine"), ("straight_through", "rotation")):
        config = VQConfig(num_codes=4, dim=3, distance=distance, gradient=gradient)
        assert build_bottleneck(config)(torch.randn(1, 3, 2, 2)).z.shape == (1, 3, 2, 2)
