"""What every bottleneck returns."""

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class Bottlenecked:
    """Latents and what was learned on the way to them.

    z: latents, float32.
    codes: integers in [0, num_codes), q per position; None for a continuous bottleneck.
    terms: unweighted losses by name, summed over each image.
    posterior: q(z | x) of a continuous bottleneck.
    """

    z: Float[Tensor, "b d h w"]
    codes: Int[Tensor, "b h w q"] | None = None
    terms: dict[str, Float[Tensor, " b"]] = field(default_factory=dict)
    posterior: object | None = None
