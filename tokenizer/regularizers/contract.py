"""What a regularizer of the latents gives."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass
class Regularization:
    """term: unweighted, of the whole batch, on the scale of one image. metrics: figures to report, detached scalars."""

    term: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


def latent_rows(z: Float[Tensor, "b k d h w"]) -> Float[Tensor, "n elements"]:
    """Every draw of every image as one row of its elements; the draws of an image are adjacent."""
    return z.flatten(0, 1).flatten(1).float()
