"""Ways from one latent to another."""

import torch
from jaxtyping import Float
from torch import Tensor

NEARLY_PARALLEL = 1e-4  # sine of the angle


def linear_path(start: Float[Tensor, "d h w"], end: Float[Tensor, "d h w"], steps: int) -> Float[Tensor, "steps d h w"]:
    """Equally spaced points on the line between two latents, both of them included."""
    share = torch.linspace(0, 1, steps, device=start.device).view(-1, *[1] * start.ndim)
    return (1 - share) * start + share * end


def spherical_path(
    start: Float[Tensor, "d h w"], end: Float[Tensor, "d h w"], steps: int
) -> Float[Tensor, "steps d h w"]:
    """Points at equal angles between two latents (Shoemake 1985; White 2016, arXiv 1609.04468): their lengths stay near
    those of draws from a standard normal, where points in the middle of a line are too short. Latents that are nearly
    parallel, opposite or zero have the line.
    """
    a, b = start.flatten().double(), end.flatten().double()
    lengths = a.norm() * b.norm()
    angle = torch.acos((torch.dot(a, b) / lengths).clamp(-1, 1))
    if not lengths or angle.sin() < NEARLY_PARALLEL:
        return linear_path(start, end, steps)
    share = torch.linspace(0, 1, steps, dtype=torch.float64, device=start.device)[:, None]
    path = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()
    return path.to(start.dtype).view(steps, *start.shape)
