"""A hierarchy of Gaussian latents with a network of its own: the ladder variational autoencoder."""

from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.bottlenecks.contract import BottleneckOutput, Continuous
from tokenizer.bottlenecks.gaussian import LogVarianceOptions
from tokenizer.ladder import LadderPosterior, LadderPrior, TopDown, gated, layer
from tokenizer.latents import LatentDistribution, LatentPrior, PosteriorOf

Shape = tuple[int, int, int]


class LadderConfig(LogVarianceOptions):
    """One level of `dims` latent channels each, from the top down (Sønderby et al. 2016, arXiv 1602.02282).

    The bottom level has the grid of the backbone, and every level above half of that (rounded up). Where the backbone
    gives a vector all levels are vectors. `latent_prior` is that of the top level.

    width: channels of the features of every level, and of the top-down network.
    merge: how a level's posterior is made of features of the image and of the levels above, see `TopDown`.
    log_variance_range: of posteriors and priors.
    """

    continuous: ClassVar[bool] = True
    random: ClassVar[bool] = True
    kind: Literal["ladder"] = "ladder"
    dims: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(4, 4), min_length=2, max_length=100, examples=[(3, 1, 2)]
    )
    width: int = Field(default=64, ge=1)
    merge: Literal["concatenate", "precision_weighted"] = "concatenate"

    def shapes(self, grid: tuple[int, int]) -> tuple[Shape, ...]:
        """(d, h, w) of every level, from the top, above a `grid` of rows and columns."""
        rows, columns = grid
        shapes: list[Shape] = []
        for dim in reversed(self.dims):
            shapes.append((dim, rows, columns))
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        return tuple(reversed(shapes))


class Ladder(Continuous, nn.Module):
    """h holds the features of the bottom level before their gate. z is the joint latent of all levels, from the top.

    Two levels behind gated dense layers are nearly the two-level VAE of VampPrior (arXiv 1705.07120). There every
    distribution has layers of its own. Here q(z2 | x) stands on the features that q(z1 | x, z2) sees, and all that
    depends on z2 sees the same features of it.
    """

    def __init__(self, config: LadderConfig, grid: tuple[int, int]):
        super().__init__()
        self.config, width = config, config.width
        shapes = config.shapes(grid)
        self.top_down = TopDown(shapes, width, config.log_variance_range, config.merge)
        self.bottom_up = nn.ModuleList(gated(width, width, (h, w), stride=2) for _, h, w in reversed(shapes[1:]))
        self.evidence = nn.ModuleList(
            layer(width, self.top_down.evidence_channels(level, width), (h, w))
            for level, (_, h, w) in enumerate(shapes)
        )
        self.in_channels, self.dim = 2 * width, self.top_down.out_channels

    def forward(self, h: Float[Tensor, "b c h w"], step: int = 0) -> BottleneckOutput:
        features = [F.glu(h, 1)]
        for up in self.bottom_up:
            features.append(up(features[-1]))
        evidence = [each(found) for each, found in zip(self.evidence, reversed(features), strict=True)]
        return BottleneckOutput(posterior=LadderPosterior(self.top_down, evidence))

    def latent_shapes(self, grid: tuple[int, int]) -> tuple[Shape, ...]:
        return self.config.shapes(grid)

    def decoder_input(self, z: Float[Tensor, "n total 1 1"]) -> Float[Tensor, "n c h w"]:
        """The bottom latent, and the state above it, which is made of all others."""
        seen = self.top_down.states_above(self.top_down.split(z))[-1]
        assert seen is not None
        return seen

    def joint_prior(
        self, prior: LatentPrior, posterior_of: PosteriorOf, condition: Float[Tensor, "#b c"] | None = None
    ) -> LatentDistribution:
        def top_of(images: Float[Tensor, "n c h w"]):
            posterior = posterior_of(images)
            assert isinstance(posterior, LadderPosterior)
            return posterior.top

        return LadderPrior(prior.distribution(top_of, condition), self.top_down)

    def encode_state(self) -> dict[str, Tensor]:
        """All weights but the priors', unless a posterior is made of its level's prior."""
        hidden = () if self.config.merge == "precision_weighted" else ("top_down.priors.",)
        return {name: weight.detach() for name, weight in self.named_parameters() if not name.startswith(hidden)}
