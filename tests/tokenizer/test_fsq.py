import pytest
import torch

from tokenizer.bottlenecks.fsq import FSQ, FSQConfig


def test_codes_and_latents_are_one_to_one():
    bottleneck = FSQ(FSQConfig(levels=(8, 5, 5, 2)))
    codes = torch.arange(400).view(4, 10, 10, 1)
    z = bottleneck.codes_to_latents(codes)
    assert len(z.movedim(1, -1).reshape(-1, 4).unique(dim=0)) == 400
    # From any latent, features that reach it are found by inverting the bound: atanh((z w + o) / l) - shift.
    width, half_range = (bottleneck.levels // 2).view(4, 1, 1), ((bottleneck.levels - 1) * 1.001 / 2).view(4, 1, 1)
    offset = (bottleneck.levels % 2 == 0).view(4, 1, 1) * 0.5
    shift = (offset / half_range).atanh()
    shift[3] = 0  # two levels have none
    features = ((z * width + offset) / half_range).atanh() - shift
    assert torch.equal(bottleneck(features).codes, codes)


def test_codes_and_latents_are_the_papers_formula():
    levels = (8, 5, 4)
    h = 2 * torch.randn(2, 3, 4, 4)
    out = FSQ(FSQConfig(levels=levels))(h)
    expected = torch.zeros(2, 4, 4, dtype=torch.long)
    for channel, count in enumerate(levels):
        half_range, offset = (count - 1) * 1.001 / 2, 0.0 if count % 2 else 0.5
        shift = torch.tensor(offset / half_range).atanh()
        digit = ((h[:, channel] + shift).tanh() * half_range - offset).round()
        torch.testing.assert_close(out.z[:, channel], digit / (count // 2))
        expected += (digit.long() + count // 2) * (1, 8, 40)[channel]
    assert torch.equal(out.codes[..., 0], expected)


def test_codes_and_latents_are_those_of_vector_quantize_pytorch():
    peer = pytest.importorskip("vector_quantize_pytorch")
    h = torch.randn(2, 3, 8, 8)
    z, codes = peer.FSQ(levels=[8, 5, 4])(h)
    out = FSQ(FSQConfig(levels=(8, 5, 4)))(h)
    torch.testing.assert_close(out.z, z)
    assert torch.equal(out.codes[..., 0], codes.long())


def test_zero_features_become_zero():
    bottleneck = FSQ(FSQConfig(levels=(8, 7, 2)))
    assert bottleneck(torch.zeros(1, 3, 1, 1)).z.eq(0).all()


def test_two_levels_learn_to_be_told_apart():
    """A linear encoder in front of one channel of two levels learns the sign of its input from a loss on z."""
    torch.manual_seed(0)
    bottleneck = FSQ(FSQConfig(levels=(2,)))
    weight = torch.tensor(-0.3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.3)
    for _ in range(100):
        x = torch.randn(64, 1, 1, 1)
        loss = (bottleneck(weight * x).z - torch.where(x > 0, 0.0, -1.0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert weight > 0.1 and loss < 0.01
