from itertools import pairwise
from typing import Any

import pytest
import torch

from tokenizer.bottlenecks.vq import VQ, VQConfig


def test_forward_and_backward_are_those_of_vector_quantize_pytorch():
    peer = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    theirs = peer.VectorQuantize(
        8, 32, decay=0.99, commitment_weight=0.25, rotation_trick=False, accept_image_fmap=True
    ).train()
    ours: Any = VQ(VQConfig(num_codes=32, dim=8, kmeans_init=False))
    ours.codebooks[0].embedding.copy_(theirs.codebook)
    ours.codebooks[0].ema_sum.copy_(theirs.codebook)
    for step in range(4):
        h = torch.randn(3, 8, 5, 6)
        upstream = torch.randn_like(h)
        gradients = []
        for quantizer in (theirs, ours):
            leaf = h.clone().requires_grad_()
            if quantizer is theirs:
                z, codes, loss = theirs(leaf)
            else:
                out = ours(leaf, step)
                ours.after_step(step)
                z, codes, loss = out.z, out.codes[..., 0], 0.25 * out.terms["commitment"].sum() / h.numel()
            ((z * upstream).mean() + loss.sum()).backward()
            gradients.append((z, codes, loss.sum(), leaf.grad))
        torch.testing.assert_close(gradients[0], gradients[1])


def test_rotation_gradient_is_that_of_vector_quantize_pytorch():
    peer = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    theirs = peer.VectorQuantize(8, 32, rotation_trick=True, commitment_weight=0.0, accept_image_fmap=True).train()
    ours: Any = VQ(VQConfig(num_codes=32, dim=8, kmeans_init=False, gradient_estimator="rotation"))
    ours.codebooks[0].embedding.copy_(theirs.codebook)
    h, upstream = torch.randn(3, 8, 5, 6), torch.randn(3, 8, 5, 6)
    leaves = [h.clone().requires_grad_() for _ in range(2)]
    theirs(leaves[0])[0].backward(upstream)
    ours(leaves[1]).z.backward(upstream)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_commitment_gradient_pulls_features_to_their_code():
    torch.manual_seed(0)
    vq: Any = VQ(VQConfig(num_codes=16, dim=4, kmeans_init=False))
    h = torch.randn(2, 4, 3, 3, requires_grad=True)
    out = vq(h)
    out.terms["commitment"].sum().backward()
    torch.testing.assert_close(h.grad, 2 * (h - out.z).detach())


def test_each_quantizer_brings_the_latents_nearer():
    torch.manual_seed(0)
    vq: Any = VQ(VQConfig(num_codes=32, dim=4, num_quantizers=3))
    h = torch.randn(4, 4, 8, 8)
    for step in range(5):
        vq(h, step)
        vq.after_step(step)
    codes = vq.eval()(h).codes
    partial, errors = torch.zeros_like(h), []
    for index, codebook in enumerate(vq.codebooks):
        partial = partial + codebook.lookup(codes[..., index]).movedim(-1, 1)
        errors.append((h - partial).square().sum(dim=(1, 2, 3)))
    assert all((after < before).all() for before, after in pairwise(errors))
    torch.testing.assert_close(vq(h).terms["commitment"][:, 0], sum(errors))


def test_cosine_latents_have_unit_length_and_ignore_the_features_length():
    torch.manual_seed(0)
    vq: Any = VQ(VQConfig(num_codes=32, dim=4, distance="cosine"))
    h = torch.randn(4, 4, 8, 8)
    for step in range(3):
        vq(h, step)
        vq.after_step(step)
    out, louder = vq.eval()(h), vq(7 * h)
    torch.testing.assert_close(out.z.norm(dim=1), torch.ones(4, 8, 8))
    assert torch.equal(out.codes, louder.codes)


def test_training_latents_are_of_the_codebook_before_it_learned():
    torch.manual_seed(0)
    vq: Any = VQ(VQConfig(num_codes=16, dim=4, kmeans_init=False))
    h = torch.randn(2, 4, 3, 3)
    expected = vq.eval()(h)
    out = vq.train()(h)
    assert torch.equal(out.z, expected.z) and torch.equal(out.codes, expected.codes)
    vq.after_step(0)
    assert not torch.equal(vq.codes_to_latents(out.codes), out.z)


def test_state_round_trips():
    torch.manual_seed(0)
    config = VQConfig(num_codes=16, dim=4, num_quantizers=2)
    trained, loaded = VQ(config), VQ(config)
    h = torch.randn(2, 4, 5, 5)
    trained(h)
    trained.after_step(0)
    loaded.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(loaded.eval()(h).z, trained.eval()(h).z)
    assert trained.embedding.shape == (2, 16, 4)
