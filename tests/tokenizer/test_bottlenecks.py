"""The contract of every bottleneck in the union. What one of them promises beyond it is tested in its own file, and the
one with levels, whose latents do not depend on one position only, in test_multilevel.py."""

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tests.tokenizer.members import examples
from tokenizer.bottlenecks import Bottleneck, BottleneckConfig, ContinuousBottleneck, Quantizer, build_bottleneck

MEMBERS = {name: config for name, config in examples(BottleneckConfig).items() if config.kind != "multilevel"}
SIDE = (4, 5)
DISCRETE = [name for name, config in MEMBERS.items() if build_bottleneck(config, SIDE).num_codes is not None]

every_member = pytest.mark.parametrize("name", MEMBERS)
every_quantizer = pytest.mark.parametrize("name", DISCRETE)


def a_batch(name, trained=True) -> tuple[Any, Tensor]:
    """A bottleneck, after two steps of training if wanted, and features of two images."""
    torch.manual_seed(0)
    bottleneck: Any = build_bottleneck(MEMBERS[name], SIDE)
    h = torch.randn(2, bottleneck.in_channels, *SIDE)
    for step in range(2 if trained else 0):
        bottleneck(h + torch.randn_like(h), step)
        bottleneck.after_step(step)
    return bottleneck, h


def has_levels(bottleneck) -> bool:
    """Whether the latent is continuous and has several levels."""
    return bottleneck.num_codes is None and len(bottleneck.latent_shapes(SIDE)) > 1


def takes_logits(bottleneck) -> bool:
    """Whether the features are logits of codes, which stand in another space than latents."""
    return bottleneck.num_codes is not None and bottleneck.in_channels == bottleneck.num_codes != bottleneck.dim


def state_of(bottleneck):
    return {name: buffer.clone() for name, buffer in bottleneck.named_buffers()}


@every_member
def test_configuration_survives_json(name):
    adapter = TypeAdapter(BottleneckConfig)
    assert adapter.validate_json(adapter.dump_json(MEMBERS[name])) == MEMBERS[name]


LARGEST = {  # options of a quantizer with 2^20 codes, and of one with more
    "vq": ({"num_codes": 2**20, "dim": 1}, {"num_codes": 2**20 + 1}),
    "fsq": ({"levels": (32, 32, 32, 32)}, {"levels": (32, 32, 32, 33)}),
    "lfq": ({"dim": 20}, {"dim": 21}),
    "gumbel": ({"num_codes": 2**20, "dim": 1}, {"num_codes": 2**20 + 1}),
}


@pytest.mark.parametrize("kind", sorted({MEMBERS[name].kind for name in DISCRETE}))
def test_a_codebook_whose_use_cannot_be_counted_is_refused(kind):
    adapter, (largest, beyond) = TypeAdapter(BottleneckConfig), LARGEST[kind]
    assert build_bottleneck(adapter.validate_python({"kind": kind, **largest}), SIDE).num_codes == 2**20
    with pytest.raises(ValidationError, match=r"1048576|1,048,576|less than or equal to 20"):
        adapter.validate_python({"kind": kind, **beyond})


@every_member
def test_every_member_keeps_the_protocol(name):
    bottleneck, _ = a_batch(name)
    assert isinstance(bottleneck, Bottleneck)
    assert isinstance(bottleneck, Quantizer) == (name in DISCRETE)
    assert isinstance(bottleneck, ContinuousBottleneck) == (name not in DISCRETE)
    assert (bottleneck.num_quantizers > 0) == (name in DISCRETE)


@every_member
@pytest.mark.parametrize("training", [True, False])
def test_shapes(name, training):
    bottleneck, h = a_batch(name)
    out = bottleneck.train(training)(h, 2)
    assert len(out.z) == 2 and out.z.dtype == torch.float32
    assert all(term.shape == (2, 1) for term in out.terms.values())
    assert all(figure.shape == () for figure in (out.batch_terms | out.metrics).values())
    assert not any(figure.requires_grad for figure in out.metrics.values())
    if name in DISCRETE:
        assert out.posterior is None and out.z.shape == (2, bottleneck.dim, *SIDE)
        assert out.codes.shape == (2, *SIDE, bottleneck.num_quantizers)
        assert [grid.axes for grid in bottleneck.code_grids(*SIDE)] == [out.codes.shape[1:]]
        assert out.codes.min() >= 0 and out.codes.max() < bottleneck.num_codes
    else:
        levels = bottleneck.latent_shapes(SIDE)
        assert out.z[0].numel() == sum(map(math.prod, levels))
        assert out.z.shape[1:] == (levels[0] if len(levels) == 1 else (out.z[0].numel(), 1, 1))
        assert bottleneck.decoder_input(out.z).shape == (2, bottleneck.dim, *SIDE)
        assert out.codes is None and (out.posterior is None or torch.equal(out.z, out.posterior.mean))


@every_member
def test_terms_have_the_same_names_in_training_and_evaluation(name):
    bottleneck, h = a_batch(name)
    training, evaluation = bottleneck.train()(h), bottleneck.eval()(h)
    assert training.terms.keys() == evaluation.terms.keys()
    assert training.batch_terms.keys() == evaluation.batch_terms.keys()


@every_member
def test_evaluation_is_deterministic_and_changes_no_buffer(name):
    bottleneck, h = a_batch(name)
    before = state_of(bottleneck.eval())
    first, second = bottleneck(h, 3), bottleneck(h, 4)
    bottleneck.after_step(4)
    assert torch.equal(first.z, second.z)
    assert all(torch.equal(value, before[key]) for key, value in state_of(bottleneck).items())


@every_member
def test_a_training_forward_collects_and_after_step_learns(name):
    bottleneck, h = a_batch(name)
    decided, before = bottleneck.encode_state(), bottleneck.eval()(h).z
    bottleneck.train()(h, 10)
    assert torch.equal(bottleneck.eval()(h).z, before)
    bottleneck.after_step(10)
    moved = any(not torch.equal(tensor, decided[key]) for key, tensor in bottleneck.encode_state().items())
    parameters = dict(bottleneck.named_parameters())  # these learn from gradients
    assert moved == any(key not in parameters for key in decided)


@every_member
def test_a_batch_in_parts_teaches_what_the_whole_batch_does(name):
    whole, h = a_batch(name)
    parted, _ = a_batch(name)
    batch = torch.cat([h, h + torch.randn_like(h)])
    whole(batch, 3)
    for part in batch.split([1, 2, 1]):
        parted(part, 3)
    whole.after_step(3)
    parted.after_step(3)
    torch.testing.assert_close(parted.state_dict(), whole.state_dict())


@every_member
def test_only_what_is_collected_in_a_step_is_lost_by_a_checkpoint(name):
    trained, h = a_batch(name)
    loaded: Any = build_bottleneck(MEMBERS[name], SIDE)
    loaded.load_state_dict(trained.state_dict(), strict=True)
    for step in (2, 3):
        for each in (trained, loaded):
            torch.manual_seed(step)
            each.train()(h, step)
            each.after_step(step)
    assert torch.equal(trained.eval()(h).z, loaded.eval()(h).z)


@every_quantizer
def test_codes_give_back_the_latents(name):
    bottleneck, h = a_batch(name)
    out = bottleneck.eval()(h)
    assert torch.equal(bottleneck.codes_to_latents(out.codes), out.z)


@every_quantizer
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64])
def test_codes_of_every_integer_dtype_are_taken(name, dtype):
    bottleneck, _ = a_batch(name)
    codes = torch.arange(min(bottleneck.num_codes, 200)).view(1, -1, 1, 1).expand(-1, -1, -1, bottleneck.num_quantizers)
    assert torch.equal(bottleneck.codes_to_latents(codes.to(dtype)), bottleneck.codes_to_latents(codes))


@every_quantizer
@pytest.mark.parametrize("outside", [-1, 0])
def test_codes_out_of_range_are_refused(name, outside):
    bottleneck, _ = a_batch(name)
    codes = torch.full((1, 1, 1, bottleneck.num_quantizers), outside if outside < 0 else bottleneck.num_codes)
    with pytest.raises(ValueError, match=f"expected 0 to {bottleneck.num_codes - 1}"):
        bottleneck.codes_to_latents(codes)


@every_quantizer
def test_the_code_of_a_position_is_the_one_of_least_distance(name):
    bottleneck, h = a_batch(name)
    if bottleneck.num_quantizers > 1:
        return  # greedy: each codebook is searched by itself
    h, k = h[:1], bottleneck.num_codes
    every_code = torch.arange(k).view(-1, 1, 1, 1).expand(-1, *SIDE, 1)
    distances = bottleneck.distances(h.expand(k, -1, -1, -1), every_code)
    assert distances.shape == (k, *SIDE) and distances.min() >= 0
    assert torch.equal(bottleneck.eval()(h).codes[0, ..., 0], distances.argmin(0))


@every_quantizer
def test_distances_of_codes_out_of_range_are_refused(name):
    bottleneck, h = a_batch(name)
    codes = torch.full((2, *SIDE, bottleneck.num_quantizers), bottleneck.num_codes)
    with pytest.raises(ValueError, match=f"expected 0 to {bottleneck.num_codes - 1}"):
        bottleneck.distances(h, codes)


@every_member
def test_gradients_of_the_latents_reach_the_features(name):
    bottleneck, h = a_batch(name)
    h.requires_grad_()
    z = bottleneck(h, 2).z
    (gradient,) = torch.autograd.grad((z * torch.randn_like(z)).sum(), h)
    assert gradient.isfinite().all() and (gradient.abs().sum(dim=(0, 2, 3)) > 0)[: bottleneck.dim].all()


@every_member
def test_gradients_of_the_latents_are_not_vanishing(name):
    """Near zero, where features start, and per unit of the latents' spread."""
    bottleneck, h = a_batch(name)
    if has_levels(bottleneck) or takes_logits(bottleneck):
        return  # there is a network, or a matrix of embeddings, between features and latents
    h = (0.1 * h).requires_grad_()
    z = bottleneck(h, 2).z
    (gradient,) = torch.autograd.grad(z.sum(), h)
    assert gradient[:, : bottleneck.dim].abs().mean(dim=(0, 2, 3)).min() > 0.1


@every_member
def test_gradients_of_the_terms_reach_the_features(name):
    bottleneck, h = a_batch(name)
    h.requires_grad_()
    out = bottleneck(h, 2)
    if losses := [*out.terms.values(), *out.batch_terms.values()]:
        (gradient,) = torch.autograd.grad(torch.stack([loss.sum() for loss in losses]).sum(), h)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


@every_member
def test_terms_are_sums_over_one_image(name):
    bottleneck, h = a_batch(name)
    bottleneck.eval()
    for term, value in bottleneck(h).terms.items():
        torch.testing.assert_close(bottleneck(h[1:]).terms[term], value[1:])
        torch.testing.assert_close(bottleneck(h.repeat(1, 1, 2, 1)).terms[term], 2 * value)


@every_member
def test_batch_terms_are_on_the_scale_of_one_image(name):
    bottleneck, h = a_batch(name)
    bottleneck.eval()
    for term, value in bottleneck(h).batch_terms.items():
        torch.testing.assert_close(bottleneck(h.repeat(2, 1, 1, 1)).batch_terms[term], value)
        torch.testing.assert_close(bottleneck(h.repeat(1, 1, 2, 1)).batch_terms[term], 2 * value)


@every_member
def test_half_precision_features_are_bottlenecked_in_float32(name):
    bottleneck, h = a_batch(name)
    bottleneck.eval()
    half = h.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = bottleneck(half)
    reference = bottleneck(half.float())
    assert out.z.dtype == torch.float32
    if has_levels(bottleneck):  # its network is computed as the encoder is, its distributions in float32
        torch.testing.assert_close(out.z, reference.z, rtol=0.05, atol=0.05)
    else:
        assert torch.equal(out.z, reference.z)


@every_quantizer
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_vectors_that_are_not_finite_get_a_code_and_are_never_learned_from(name, bad):
    broken, h = a_batch(name)
    sound, _ = a_batch(name)
    spoilt, clean = h.clone(), h.clone()
    spoilt[1, 0, 0, 0] = bad
    out = broken(spoilt, 3)
    assert out.codes.min() >= 0 and out.codes.max() < broken.num_codes
    broken.after_step(3)
    assert all(tensor.isfinite().all() for tensor in broken.state_dict().values())
    # What is learned is what the other vectors teach.
    keep = torch.ones(2, *SIDE, dtype=torch.bool)
    keep[1, 0, 0] = False
    rest = clean.movedim(1, -1)[keep].T[None, :, :, None]
    sound(rest, 3)
    sound.after_step(3)
    torch.testing.assert_close(broken.state_dict(), sound.state_dict())


@every_quantizer
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_vectors_that_are_not_finite_are_counted(name, bad):
    bottleneck, h = a_batch(name)
    assert bottleneck(h, 3).metrics["nonfinite_vectors"] == 0
    h[0, 0, 1, 2] = h[1, 0, 3, 0] = h[1, -1, 3, 0] = bad
    assert bottleneck(h, 3).metrics["nonfinite_vectors"] == 2


@every_quantizer
def test_a_first_batch_that_is_not_finite_leaves_no_mark(name):
    bottleneck, h = a_batch(name, trained=False)
    for step in range(3):
        bottleneck(torch.full_like(h, torch.nan), step)
        bottleneck.after_step(step)
    for step in range(3):
        bottleneck(h, step)
        bottleneck.after_step(step)
    assert all(tensor.isfinite().all() for tensor in bottleneck.state_dict().values())
    assert len(bottleneck.eval()(h).codes.unique()) > 1


@every_quantizer
def test_codes_do_not_depend_on_the_memory_layout(name):
    bottleneck, h = a_batch(name)
    bottleneck.eval()
    assert torch.equal(bottleneck(h.contiguous(memory_format=torch.channels_last)).codes, bottleneck(h).codes)


@every_member
def test_the_encode_config_changes_exactly_when_codes_or_posteriors_do(name):
    """Each option against its default, with the same weights."""
    changed, h = a_batch(name)
    default: Any = build_bottleneck(type(MEMBERS[name])(), SIDE)
    same_config = MEMBERS[name].encode_config() == default.config.encode_config()
    shapes = [{key: value.shape for key, value in each.encode_state().items()} for each in (changed, default)]
    if shapes[0] != shapes[1] or changed.in_channels != default.in_channels:
        assert not same_config
        return
    changed.load_state_dict(default.state_dict(), strict=True)
    given = []
    for bottleneck in (changed, default):
        out = bottleneck.eval()(3 * h)
        given.append(out.posterior.sample(1, torch.Generator().manual_seed(0)) if out.posterior else out.z)
    assert torch.equal(*given) == same_config


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "vq", "num_quantizers": 2, "distance": "cosine"},
        {"kind": "vq", "codes": 8},
        {"kind": "fsq", "levels": [1]},
    ],
)
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(BottleneckConfig).validate_python(wrong)
