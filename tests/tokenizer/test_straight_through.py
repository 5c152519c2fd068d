import torch

from tokenizer.straight_through import rotation_trick, straight_through


def test_both_return_exactly_the_quantized_value():
    h, z = 100 * torch.randn(50, 8, requires_grad=True), torch.randn(50, 8)
    assert torch.equal(straight_through(h, z), z)
    assert torch.equal(rotation_trick(h, z), z)


def test_straight_through_copies_the_gradient():
    h, z, gradient = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8), torch.randn(5, 8)
    (found,) = torch.autograd.grad(straight_through(h, z), h, gradient)
    assert torch.equal(found, gradient)


def test_rotation_gradient_is_the_papers_rotation_and_scale():
    h, z, gradient = (torch.randn(6, 5, dtype=torch.double) for _ in range(3))
    h.requires_grad_()
    (found,) = torch.autograd.grad(rotation_trick(h, z), h, gradient)
    for x, q, upstream, got in zip(h.detach(), z, gradient, found, strict=True):
        # arXiv 2410.06424, section 4.2, written out as a matrix.
        e_unit, q_unit = x / x.norm(), q / q.norm()
        r = (e_unit + q_unit) / (e_unit + q_unit).norm()
        rotation = torch.eye(5, dtype=torch.double) - 2 * torch.outer(r, r) + 2 * torch.outer(q_unit, e_unit)
        scale = q.norm() / x.norm()
        torch.testing.assert_close(scale * rotation @ x, q)
        torch.testing.assert_close(got, scale * rotation.T @ upstream)


def test_rotation_keeps_the_angle_between_gradient_and_vector():
    h, z, gradient = (torch.randn(6, 5) for _ in range(3))
    h.requires_grad_()
    (found,) = torch.autograd.grad(rotation_trick(h, z), h, gradient)
    before, after = torch.cosine_similarity(z, gradient), torch.cosine_similarity(h.detach(), found)
    torch.testing.assert_close(after, before)


def test_rotation_gradient_is_finite_where_the_rotation_is_undefined():
    z = torch.randn(3, 4)
    h = torch.stack([-z[0], torch.zeros(4), z[2]]).requires_grad_()
    (found,) = torch.autograd.grad(rotation_trick(h, z).sum(), h)
    assert found.isfinite().all()
