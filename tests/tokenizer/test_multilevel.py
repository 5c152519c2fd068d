"""Codes on several grids: the bottleneck of VQ-VAE-2, with every quantizer of the union as a level."""

from itertools import product
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tests.tokenizer.members import members
from tokenizer import Autoencoder, AutoencoderConfig, BottleneckConfig, code_axes, join_codes, split_codes
from tokenizer.bottlenecks import Quantizer, build_bottleneck
from tokenizer.bottlenecks.quantizers import QuantizerConfig
from tokenizer.code_grids import CodeGrid, marked_positions

SMALL = {
    "vq": {"num_codes": 12, "dim": 5},
    "fsq": {"levels": [3, 4]},
    "lfq": {"dim": 3},
    "gumbel": {"num_codes": 12, "dim": 5},
}
KINDS = [str(member.model_fields["kind"].default) for member in members(QuantizerConfig)]
PAIRS = [pytest.param((one, other), id=f"{one} over {other}") for one, other in product(KINDS, KINDS)]
THREE = [pytest.param(("vq", "fsq", "lfq"), id="three levels")]
every_hierarchy = pytest.mark.parametrize("kinds", PAIRS + THREE)
SIDE = 8


def config_of(kinds, **options) -> Any:
    levels = [{"kind": kind, **SMALL.get(kind, {})} for kind in kinds]
    backbone = {"kind": "conv", "widths": [6], "residual_blocks": 1, "residual_width": 4}
    content = {"kind": "multilevel", "levels": levels, "width": 6, "backbone": backbone, **options}
    return TypeAdapter(BottleneckConfig).validate_python(content)


def a_batch(kinds, trained=True, **options) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    bottleneck: Any = build_bottleneck(config_of(kinds, **options), (SIDE, SIDE))
    h = 3 * torch.randn(4, bottleneck.in_channels, SIDE, SIDE)
    for step in range(3 if trained else 0):
        bottleneck(h + torch.randn_like(h), step)
        bottleneck.after_step(step)
    return bottleneck, h


def random_codes(bottleneck, n=2):
    grids = bottleneck.grids
    return join_codes([torch.randint(grid.num_codes, (n, *grid.axes)) for grid in grids])


@every_hierarchy
def test_levels_run_coarse_to_fine_each_half_as_coarse(kinds):
    bottleneck, h = a_batch(kinds)
    grids = bottleneck.code_grids(SIDE, SIDE)
    assert [grid.rows for grid in grids] == [SIDE // 2**i for i in reversed(range(len(kinds)))]
    assert [grid.num_codes for grid in grids] == [q.num_codes for q in bottleneck.quantizers]
    out = bottleneck(h)
    assert isinstance(bottleneck, Quantizer) and out.posterior is None
    assert out.codes.shape == (4, *code_axes(grids)) and out.z.shape == (4, bottleneck.dim, SIDE, SIDE)
    for codes, grid in zip(split_codes(out.codes, grids), grids, strict=True):
        assert codes.min() >= 0 and codes.max() < grid.num_codes


@every_hierarchy
def test_codes_give_back_the_latents(kinds):
    bottleneck, h = a_batch(kinds)
    out = bottleneck.eval()(h)
    assert torch.equal(bottleneck.codes_to_latents(out.codes), out.z)
    assert torch.equal(bottleneck.codes_to_latents(out.codes.to(torch.uint8)), out.z)


@every_hierarchy
def test_the_codes_of_a_level_decide_the_latents_of_that_level_only(kinds):
    bottleneck, _ = a_batch(kinds)
    before, other = (split_codes(random_codes(bottleneck), bottleneck.grids) for _ in range(2))
    z, dims = bottleneck.codes_to_latents(join_codes(before)), [q.dim for q in bottleneck.quantizers]
    for level in range(len(kinds)):
        changed = [other[i] if i == level else before[i] for i in range(len(kinds))]
        moved = bottleneck.codes_to_latents(join_codes(changed)) != z
        assert [bool(part.any()) for part in moved.split(dims, 1)] == [i == level for i in range(len(kinds))]


@every_hierarchy
def test_a_code_of_a_coarse_level_covers_the_positions_below_it(kinds):
    bottleneck, _ = a_batch(kinds)
    codes = random_codes(bottleneck, 1)
    changed = codes.clone()
    changed[0, 0] = (codes[0, 0] + 1) % bottleneck.grids[0].num_codes
    moved = (bottleneck.codes_to_latents(changed) != bottleneck.codes_to_latents(codes)).any(1)[0]
    span = SIDE // bottleneck.grids[0].rows
    assert moved[:span, :span].all() and moved.sum() == span**2


@every_hierarchy
def test_a_finer_level_is_conditioned_on_the_coarser_codes(kinds):
    """With the features of the finest grid held fixed, another coarse latent gives other fine features."""
    bottleneck, h = a_batch(kinds)
    bottleneck.eval()
    before = bottleneck._levels(h, 0)
    with torch.no_grad():
        bias = bottleneck.projections[0].bias
        bias += torch.linspace(-9, 9, len(bias))
    after = bottleneck._levels(h, 0)
    assert not torch.equal(before[0][1].codes, after[0][1].codes)
    assert all(not torch.equal(one[0], other[0]) for one, other in zip(before[1:], after[1:], strict=True))


@every_hierarchy
def test_at_every_position_the_codes_of_the_features_have_the_least_distance(kinds):
    bottleneck, h = a_batch(kinds)
    bottleneck.eval()
    own = bottleneck.distances(h, bottleneck(h).codes)
    assert own.shape == (4, SIDE, SIDE) and own.min() >= 0
    for _ in range(5):
        assert (own <= bottleneck.distances(h, random_codes(bottleneck, 4))).all()


@every_hierarchy
def test_terms_are_the_sums_of_those_of_the_levels(kinds):
    bottleneck, h = a_batch(kinds)
    bottleneck.eval()
    out, levels = bottleneck(h), [output for _, output in bottleneck._levels(h, 0)]
    for name, term in out.terms.items():
        torch.testing.assert_close(term, sum(level.terms[name] for level in levels if name in level.terms))
        assert term.shape == (4, 1)
    for name, term in out.batch_terms.items():
        torch.testing.assert_close(term, sum(level.batch_terms[name] for level in levels if name in level.batch_terms))


@every_hierarchy
def test_gradients_reach_every_parameter_and_the_features(kinds):
    bottleneck, h = a_batch(kinds)
    h.requires_grad_()
    out = bottleneck(h)
    (out.z * torch.randn_like(out.z)).sum().backward()
    assert h.grad is not None and h.grad.isfinite().all() and (h.grad.abs().sum((0, 2, 3)) > 0).all()
    for name, parameter in bottleneck.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@every_hierarchy
def test_evaluation_changes_nothing_and_after_step_learns_at_every_level(kinds):
    bottleneck, h = a_batch(kinds)
    before = {name: buffer.clone() for name, buffer in bottleneck.named_buffers()}
    bottleneck.eval()(h)
    bottleneck.after_step(3)
    assert all(torch.equal(buffer, before[name]) for name, buffer in bottleneck.named_buffers())
    bottleneck.train()(h + 1, 3)
    bottleneck.after_step(3)
    for level, kind in enumerate(kinds):
        if kind == "vq":
            moved = bottleneck.quantizers[level].embedding
            assert not torch.equal(moved[0], before[f"quantizers.{level}.codebooks.0.embedding"])


@every_hierarchy
def test_everything_but_statistics_of_training_decides_codes(kinds):
    bottleneck, h = a_batch(kinds)
    other: Any = build_bottleneck(config_of(kinds), (SIDE, SIDE))
    state = bottleneck.encode_state()
    names = {name for name, _ in bottleneck.named_parameters()}
    assert names <= state.keys()
    other.load_state_dict(bottleneck.state_dict())
    assert torch.equal(other.eval()(h).codes, bottleneck.eval()(h).codes)


def test_training_options_of_a_level_do_not_change_the_encode_config():
    content = config_of(("vq", "vq")).model_dump()
    basis = TypeAdapter(BottleneckConfig).validate_python(content).encode_config()
    content["levels"][0]["decay"] = 0.5
    assert TypeAdapter(BottleneckConfig).validate_python(content).encode_config() == basis
    content["levels"][0]["distance"] = "cosine"
    assert TypeAdapter(BottleneckConfig).validate_python(content).encode_config() != basis


def test_residual_codes_of_a_level_lie_side_by_side():
    levels = [{"kind": "vq", "num_codes": 7, "dim": 3}, {"kind": "vq", "num_codes": 9, "dim": 4, "num_quantizers": 2}]
    bottleneck, h = a_batch((), levels=levels)
    assert [grid.axes for grid in bottleneck.grids] == [(4, 4, 1), (8, 8, 2)]
    out = bottleneck.eval()(h)
    assert out.codes.shape == (4, 16 + 128) and torch.equal(bottleneck.codes_to_latents(out.codes), out.z)


@pytest.mark.parametrize("level", [0, 1])
def test_a_code_beyond_its_own_level_is_refused(level):
    levels = [{"kind": "vq", "num_codes": 7, "dim": 3}, {"kind": "vq", "num_codes": 9, "dim": 4}]
    bottleneck, _ = a_batch((), levels=levels, trained=False)
    codes = torch.zeros(1, 16 + 64, dtype=torch.long)
    codes[0, -1 if level else 15] = 7 + 2 * level
    with pytest.raises(ValueError, match=f"expected 0 to {6 + 2 * level}"):
        bottleneck.codes_to_latents(codes)


def test_another_number_of_codes_is_refused():
    bottleneck, _ = a_batch(("vq", "vq"), trained=False)
    with pytest.raises(ValueError, match=r"4 x 4 x 1 then 8 x 8 x 1"):
        bottleneck.codes_to_latents(torch.zeros(1, 79, dtype=torch.long))


def test_a_grid_that_cannot_be_made_coarser_is_refused():
    recipe = {
        "image_size": 12,
        "channels": 3,
        "backbone": {"kind": "conv", "widths": [4, 4]},
        "likelihood": {"kind": "normal"},
        "bottleneck": config_of(("vq", "vq")).model_dump(),
    }
    with pytest.raises(ValidationError, match="next coarser"):
        AutoencoderConfig.model_validate(recipe)


def test_a_single_level_is_refused():
    with pytest.raises(ValidationError, match="at least 2"):
        config_of(("vq",))


def test_the_codes_of_each_level_change_the_image():
    recipe = {
        "image_size": 16,
        "channels": 3,
        "backbone": {"kind": "conv", "widths": [6], "residual_blocks": 1},
        "likelihood": {"kind": "normal"},
        "bottleneck": config_of(("vq", "vq")).model_dump(),
    }
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig.model_validate(recipe)).eval()
    codes = torch.zeros(1, *code_axes(model.code_grids), dtype=torch.long)
    image = model.decode_codes(codes)
    for place in (0, -1):
        changed = codes.clone()
        changed[0, place] = 1
        assert not torch.equal(model.decode_codes(changed), image)


def test_split_is_the_inverse_of_join():
    grids = (CodeGrid(1, 2, 1, 5), CodeGrid(2, 4, 2, 3))
    codes = torch.arange(2 * 18).view(2, 18)
    top, bottom = split_codes(codes, grids)
    assert top.shape == (2, 1, 2, 1) and bottom.shape == (2, 2, 4, 2)
    assert torch.equal(join_codes([top, bottom]), codes)
    assert bottom[0, 0, 0].tolist() == [2, 3] and bottom[0, 1, 0].tolist() == [10, 11]


def test_a_marked_coarse_code_marks_all_positions_below_it():
    grids = (CodeGrid(1, 2, 1, 5), CodeGrid(2, 4, 2, 3))
    marked = torch.zeros(1, 18, dtype=torch.bool)
    marked[0, 1] = marked[0, 2 + 1] = True
    assert marked_positions(marked, grids)[0].int().tolist() == [[1, 0, 1, 1], [0, 0, 1, 1]]
