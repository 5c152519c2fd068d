"""What every bottleneck takes, offers and returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int, Integer
from torch import Tensor

from tokenizer.code_grids import CodeGrid, CodeGrids
from tokenizer.latents import LatentDistribution, LatentPrior, Posterior, PosteriorOf
from tokenizer.noise import Generators

MAX_CODES = 2**20  # of a codebook: figures count the use of every code, and a prior has an id for each


@dataclass
class BottleneckOutput:
    """Latents and what was learned on the way to them.

    latent: float32; None if it is the posterior's mean, see `z`.
    codes: integers in [0, num_codes), q per position, on one grid or on several (see `CodeGrids`); None for a
        continuous bottleneck.
    posterior: q(z | x) of a latent that is random.
    terms: unweighted losses by name, summed over each image, with a second dimension for the draws (here 1).
    batch_terms: unweighted losses of the whole batch, on the scale of one image.
    metrics: figures to report, detached scalars.
    relaxed: in evaluation, of a quantizer that gives the decoder a relaxed, random latent in training: draws that one.
    """

    latent: Float[Tensor, "b d h w"] | None = None
    codes: Int[Tensor, " b *codes"] | None = None
    posterior: Posterior | None = None
    terms: dict[str, Float[Tensor, "b k"]] = field(default_factory=dict)
    batch_terms: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    relaxed: Callable[[Generators], Float[Tensor, "b d h w"]] | None = None

    @property
    def z(self) -> Float[Tensor, "b d h w"]:
        """The latent; of a random one the posterior's mean, which may cost a pass of a network."""
        if self.latent is not None:
            return self.latent
        assert self.posterior is not None
        return self.posterior.mean


@runtime_checkable
class Bottleneck(Protocol):
    """A module between encoder and decoder.

    in_channels: channels that it takes from the encoder. dim: channels that it gives to the decoder: those of z, unless
    the latent has levels.
    num_codes: size of a codebook; None if continuous. num_quantizers: codes per position; 0 if continuous. Of several
        grids of codes, the largest of each.
    embedding: learned codebooks (q, K, d), or None.
    """

    in_channels: int
    dim: int
    num_quantizers: int

    @property
    def num_codes(self) -> int | None: ...

    @property
    def embedding(self) -> Float[Tensor, "q k d"] | None: ...

    def __call__(self, h: Float[Tensor, "b c h w"], step: int = 0) -> BottleneckOutput: ...

    def encode_state(self) -> dict[str, Tensor]:
        """Tensors that decide, with the configuration, which codes an image gets: embeddings, no statistics."""
        ...

    def after_step(self, step: int) -> None:
        """Learns from what the forwards of this optimizer step have collected. Called once a step on every rank."""
        ...


@runtime_checkable
class ContinuousBottleneck(Bottleneck, Protocol):
    """A bottleneck without codes. Its latent may have levels, each conditioned on those above it. `latent_prior` then
    describes the top level, and z holds the levels flattened, one after another from the top: (b, total, 1, 1).
    """

    def latent_shapes(self, grid: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
        """(d, h, w) of each level from the top, for features on a `grid` of rows and columns."""
        ...

    def decoder_input(self, z: Float[Tensor, "n _ _ _"]) -> Float[Tensor, "n c h w"]:
        """What the decoder sees of latents."""
        ...

    def joint_prior(
        self, prior: LatentPrior, posterior_of: PosteriorOf, condition: Float[Tensor, "#b c"] | None = None
    ) -> LatentDistribution:
        """p(z) of all levels, given the prior of the top one, which may depend on embedded labels."""
        ...


class Continuous:
    """The part of `ContinuousBottleneck` in which all agree: no codes, and nothing is learned but by gradient.

    Without weights of its own a bottleneck decides nothing that its configuration does not say.
    """

    num_codes: None = None
    num_quantizers = 0
    embedding: None = None

    def encode_state(self) -> dict[str, Tensor]:
        return {}

    def after_step(self, step: int) -> None:
        pass


class OneLevel(Continuous):
    """A latent without levels: z, which the decoder sees, is on the grid."""

    dim: int

    def latent_shapes(self, grid: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
        return ((self.dim, *grid),)

    def decoder_input(self, z: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d h w"]:
        return z

    def joint_prior(
        self, prior: LatentPrior, posterior_of: PosteriorOf, condition: Float[Tensor, "#b c"] | None = None
    ) -> LatentDistribution:
        return prior.distribution(posterior_of, condition)


@runtime_checkable
class Quantizer(Bottleneck, Protocol):
    """A discrete bottleneck: `num_codes` and `num_quantizers` are at least 1."""

    @property
    def embeddings(self) -> tuple[Float[Tensor, "q k d"] | None, ...]:
        """The learned codebooks of each grid of codes."""
        ...

    def code_grids(self, rows: int, columns: int) -> CodeGrids:
        """The grids of the codes of features with this many rows and columns, coarse to fine."""
        ...

    def codes_to_latents(self, codes: Integer[Tensor, " b *codes"]) -> Float[Tensor, "b d h w"]:
        """The latents that `forward` gives these codes in evaluation. Any integer dtype; ValueError out of range."""
        ...

    def distances(self, h: Float[Tensor, "b c h w"], codes: Integer[Tensor, " b *codes"]) -> Float[Tensor, "b h w"]:
        """How badly codes suit the features of each position of the finest grid, at least 0; the code that `forward`
        gives a position has the least of all. Raises ValueError when a code is out of range.
        """
        ...


class OneGrid:
    """The part of `Quantizer` in which those with one grid of codes agree, unless they learn codebooks."""

    num_codes: int
    num_quantizers: int

    @property
    def embedding(self) -> Float[Tensor, "q k d"] | None:
        return None

    @property
    def embeddings(self) -> tuple[Float[Tensor, "q k d"] | None, ...]:
        return (self.embedding,)

    def code_grids(self, rows: int, columns: int) -> CodeGrids:
        return (CodeGrid(rows, columns, self.num_quantizers, self.num_codes),)

    def encode_state(self) -> dict[str, Tensor]:
        return {}

    def after_step(self, step: int) -> None:
        pass


class NearestLatent(OneGrid):
    """Codes are those whose latents are nearest to the features, once these are projected to where latents are."""

    def project(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        raise NotImplementedError

    def codes_to_latents(self, codes: Integer[Tensor, "b h w q"]) -> Float[Tensor, "b d h w"]:
        raise NotImplementedError

    def distances(self, h: Float[Tensor, "b c h w"], codes: Integer[Tensor, "b h w q"]) -> Float[Tensor, "b h w"]:
        """Squared. With several quantizers the search for codes is greedy, so other codes may be a little nearer."""
        return (self.project(h) - self.codes_to_latents(codes)).square().sum(1)


def check_codes(codes: Integer[Tensor, "*n"], num_codes: int) -> Int[Tensor, "*n"]:
    """`codes` as int64, fit for indexing. Raises ValueError when one is outside [0, num_codes)."""
    codes = codes.long()
    if codes.numel():
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= num_codes:
            raise ValueError(f"codes run from {low} to {high}, expected 0 to {num_codes - 1}")
    return codes


def count_nonfinite(h: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """How many positions hold a number that is not finite."""
    return (~h.detach().isfinite().all(dim=1)).sum().float()
