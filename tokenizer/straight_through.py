"""Gradients through a quantizer, whose own derivative is zero almost everywhere."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def straight_through(h: Float[Tensor, "*shape"], z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`z` with the gradient copied unchanged to `h` (VQ-VAE, arXiv 1711.00937, section 3.2).

    The value is exactly `z`: h - h is a true zero, where the usual h + (z - h) would round.
    """
    return z.detach() + (h - h.detach())


def rotation_trick(h: Float[Tensor, "*shape d"], z: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
    """`z` with the gradient turned by the rotation and scaled by the ratio that carry `h` to `z`.

    The rotation trick (arXiv 2410.06424, section 4.2), by Householder reflections: with unit vectors e of h and q of z,
    r = (e + q) / |e + q|, R = I - 2 r rᵀ + 2 q eᵀ and λ = |z| / |h|, the gradient to h is λ Rᵀ times the one to z.
    e, q, r and λ are constants of the graph. Vectors lie along the last dimension. The value is exactly `z`.
    """
    e, q = normalize(h.detach(), dim=-1), normalize(z.detach(), dim=-1)
    r = normalize(e + q, dim=-1)
    scale = z.detach().norm(dim=-1, keepdim=True) / h.detach().norm(dim=-1, keepdim=True).clamp_min(1e-6)
    rotated = scale * (h - 2 * r * (r * h).sum(-1, keepdim=True) + 2 * q * (e * h).sum(-1, keepdim=True))
    return straight_through(rotated, z)
