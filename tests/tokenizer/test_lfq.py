import pytest
import torch

from tokenizer.bottlenecks.lfq import LFQ, LFQConfig


def test_a_code_is_the_binary_number_of_the_signs():
    h = torch.tensor([[-2.0, 0.5, 0.1], [3.0, -0.1, -1.0], [0.0, 0.0, 7.0]])
    out = LFQ(LFQConfig(dim=3)).eval()(h.T.view(1, 3, 1, 3))
    assert out.codes.flatten().tolist() == [0b110, 0b001, 0b100]
    assert out.z[0, :, 0].T.tolist() == [[-1, 1, 1], [1, -1, -1], [-1, -1, 1]]


def test_codes_and_latents_are_those_of_vector_quantize_pytorch():
    """Its first channel is the most significant bit, ours the least."""
    peer = pytest.importorskip("vector_quantize_pytorch")
    h = torch.randn(2, 6, 5, 4)
    z, codes, _ = peer.LFQ(dim=6, codebook_size=64).eval()(h.flip(1))
    out = LFQ(LFQConfig(dim=6)).eval()(h)
    assert torch.equal(out.codes[..., 0], codes)
    torch.testing.assert_close(out.z, z.flip(1))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_entropy_term_is_that_of_a_softmax_over_all_codes(temperature):
    torch.manual_seed(0)
    bottleneck = LFQ(LFQConfig(dim=5, temperature=temperature))
    h = 0.5 * torch.randn(3, 5, 2, 4)
    every_code = bottleneck.codes_to_latents(torch.arange(32).view(1, 32, 1, 1))[0, :, :, 0].T.double()
    distances = torch.cdist(h.movedim(1, -1).reshape(-1, 5).double(), every_code).square()
    q = torch.softmax(-distances / temperature, dim=1)
    expected = torch.special.entr(q).sum(1).mean() - torch.special.entr(q.mean(0)).sum()
    torch.testing.assert_close(bottleneck(h).batch_terms["entropy"], 8 * expected.float(), rtol=1e-4, atol=1e-4)


def test_the_entropy_of_many_channels_is_the_sum_over_groups():
    torch.manual_seed(0)
    h = torch.randn(3, 12, 2, 4)
    whole = LFQ(LFQConfig(dim=12))(h).batch_terms["entropy"]
    first = LFQ(LFQConfig(dim=8))(h[:, :8]).batch_terms["entropy"]
    second = LFQ(LFQConfig(dim=4))(h[:, 8:]).batch_terms["entropy"]
    torch.testing.assert_close(whole, first + second)


def test_the_entropy_term_alone_spreads_the_codes_and_makes_them_sure():
    torch.manual_seed(0)
    bottleneck = LFQ(LFQConfig(dim=4))
    h = torch.nn.Parameter(1.0 + 0.1 * torch.randn(64, 4, 2, 2))  # one code
    optimizer = torch.optim.Adam([h], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        bottleneck(h).batch_terms["entropy"].backward()
        optimizer.step()
    assert len(bottleneck(h).codes.unique()) == 16
    assert h.abs().mean() > 0.5


def test_the_commitment_pulls_each_channel_to_its_sign():
    h = torch.randn(2, 3, 2, 2, requires_grad=True)
    LFQ(LFQConfig(dim=3))(h).terms["commitment"].sum().backward()
    torch.testing.assert_close(h.grad, 2 * (h - h.sign()).detach())
