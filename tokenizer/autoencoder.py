"""Stage one: backbone x bottleneck x likelihood. VAE, VQ-VAE and the like are configurations of one class."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor, nn

from tokenizer.autoencoder_config import AutoencoderConfig
from tokenizer.backbones import build_decoder, build_encoder
from tokenizer.bottlenecks import (
    BottleneckOutput,
    ContinuousBottleneck,
    Quantizer,
    build_bottleneck,
)
from tokenizer.code_grids import CodeGrids, code_axes
from tokenizer.conditions import LabelEmbedding
from tokenizer.latent_priors import build_latent_prior
from tokenizer.latents import LatentDistribution, Posterior
from tokenizer.likelihoods import build_likelihood
from tokenizer.noise import Generators

LogWeights = Callable[..., Float[Tensor, "b k"]]
Images = UInt8[Tensor, "b c h w"] | Float[Tensor, "b c h w"]


@dataclass
class AutoencoderOutput:
    """What a forward gives, for k draws of the latent of each of b images; the draws of an image are adjacent.

    z: latents, with their gradient. params: the likelihood's maps of every draw. terms: the bottleneck's, "nll" and of
    a random latent "kl": unweighted, in nats per image; a term that is the same for all draws may have one column.
    batch_terms: losses of the whole batch. kl_elements: what "kl" is the sum of, one tensor for each level; None where
    it was sampled as a whole. (Of a hierarchy the top may be sampled, and negative, see `Posterior.has_closed_form`.)
    latent_prior: the p(z) that was used; None if the latent is discrete.
    """

    bottleneck: BottleneckOutput
    z: Float[Tensor, "b draws d h w"]
    params: Float[Tensor, "bk p h2 w2"]
    terms: dict[str, Float[Tensor, "b draws"]]
    batch_terms: dict[str, Float[Tensor, ""]]
    kl_elements: tuple[Float[Tensor, "b _ _ _"], ...] | None = None
    latent_prior: LatentDistribution | None = None


class Autoencoder(nn.Module):
    """Images (b, c, H, W), uint8 or float in [0, 1]  <->  latents z (b, d, h, w), and codes (b, h, w, q) if discrete,
    (b, n) of several levels (see `CodeGrids`).

    The levels of a hierarchical latent are one z (b, total, 1, 1), from the top, see `latent_shapes`.

    `forward` samples the latents of a continuous model in training and in evaluation alike; `encode` and `reconstruct`
    use the posterior's mean. In training mode both collect statistics for a learned codebook, which `after_step` then
    moves; in evaluation mode no buffer changes. A second forward of the same batch while training, for a discriminator
    say, belongs under `evaluating(model)`, or its statistics would count twice.

    `condition` is the labels (b,) of a model whose configuration has a condition: integers from 0 to num_classes - 1.
    Without a label, -1 or None, it uses its embedding for "no label". Other models raise ValueError for labels, see
    `takes_labels`.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        size = config.image_size
        self.likelihood = build_likelihood(config.likelihood, config.channels)
        side = config.backbone.grid_side(size)
        self.bottleneck = build_bottleneck(config.bottleneck, (side, side))
        maps = self.likelihood.out_channels
        self.encoder = build_encoder(
            config.backbone, config.channels, self.bottleneck.in_channels, size, config.condition
        )
        self.decoder = build_decoder(config.backbone, self.bottleneck.dim, maps, size, config.condition)
        self.condition = LabelEmbedding(config.condition) if config.condition else None
        self.latent_prior = None
        if self.bottleneck.num_codes is None:
            shapes = self.latent_shapes[0], (config.channels, size, size)
            condition_dim = config.condition.dim if config.condition else 0
            self.latent_prior = build_latent_prior(config.latent_prior, *shapes, condition_dim)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(h, w, q) of the latent: rows, columns and codes per position; q = 0 when it is continuous."""
        side = self.config.backbone.grid_side(self.config.image_size)
        return side, side, self.bottleneck.num_quantizers

    @property
    def code_grids(self) -> CodeGrids:
        """The grids of codes, coarse to fine: one, or several of a bottleneck with levels; none if continuous."""
        rows, columns, _ = self.grid
        return () if self.num_codes is None else self.quantizer.code_grids(rows, columns)

    @property
    def num_codes(self) -> int | None:
        return self.bottleneck.num_codes

    @property
    def quantizer(self) -> Quantizer:
        """The bottleneck of a discrete model. Raises ValueError if the latent is continuous."""
        if self.num_codes is None:
            raise ValueError(f"a {self.config.bottleneck.kind} bottleneck has no codes: decode its latents z")
        return cast(Quantizer, self.bottleneck)

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(d, h, w) of each level of a continuous latent, from the top; one where z has no levels.

        Raises AttributeError if the latent is discrete.
        """
        return self._continuous.latent_shapes(self.grid[:2])

    @property
    def is_random(self) -> bool:
        """Whether the latent of an image has a posterior. Then -ln p(x) can be bounded, and there is a term "kl"."""
        return self.config.bottleneck.random

    @property
    def takes_labels(self) -> bool:
        """Whether the model has a condition."""
        return self.condition is not None

    @property
    def needs_labels(self) -> bool:
        """Whether it takes labels and has seen no image without one: what it makes of such an image is chance."""
        if self.condition is None or self.condition.config.dropout:
            return False
        # Untrained, the embedding of "no label" is zero. The learned images of a VampPrior train it in the encoder.
        return self.config.latent_prior.kind == "vamp" or not self.condition.embedding.weight[-1].any()

    @property
    def dims(self) -> int:
        """Numbers in one image, c * H * W: what nats per image are divided by to give nats per dimension."""
        return self.config.channels * self.config.image_size**2

    def forward(
        self,
        x: Images,
        step: int = 0,
        draws: int = 1,
        generator: Generators = None,
        condition: Tensor | None = None,
        detached_density: bool = False,
    ) -> AutoencoderOutput:
        """`generator`: one for the batch or one for each image, from which latents are sampled.

        `detached_density`: "kl" is sampled, and its ln q(z | x) passes its gradient to the encoder through z only (the
        path derivative of Roeder et al. 2017, arXiv 1703.09194).

        Raises:
            ValueError: images that do not have the configured size, channels and range type; several draws of a
                latent that is not random; labels that the model does not take.
        """
        x, condition = self._unit_range(x), self._embed(condition, len(x))
        bottleneck = self._bottleneck(x, step, condition)
        terms, kl_elements = dict(bottleneck.terms), None
        prior = self._prior_given(condition)
        if bottleneck.posterior is not None:
            z = bottleneck.posterior.sample(draws, generator)
            terms["kl"], kl_elements = self._kl(bottleneck.posterior, prior, z, detached_density)
        elif draws == 1:
            z = bottleneck.z[:, None]
        else:
            raise ValueError(f"{draws} draws need a random latent, a {self.config.bottleneck.kind} bottleneck has none")
        params, terms["nll"] = self._nll(x, z, condition)
        return AutoencoderOutput(bottleneck, z, params, terms, bottleneck.batch_terms, kl_elements, prior)

    def importance_weights(self, x: Images, condition: Tensor | None = None) -> LogWeights:
        """A function that gives ln w = ln p(x, z) - ln q(z | x), in nats, of as many latents as it is asked for. It
        decodes `at_once` of them for each image in one pass, and asks for their densities. Images are encoded once.

        Raises:
            ValueError: images as in `forward`; a latent that is not random.
        """
        x, condition = self._unit_range(x), self._embed(condition, len(x))
        posterior, prior = self._posterior(x, condition), self._prior_given(condition)
        assert prior is not None

        def log_weights(draws: int, generator: Generators = None, at_once: int | None = None) -> Float[Tensor, "b k"]:
            z = posterior.sample(draws, generator)
            parts = z.split(at_once or draws, 1)
            log_joint = [prior.log_prob(part) - self._nll(x, part, condition)[1] for part in parts]
            return torch.cat(log_joint, 1) - posterior.log_prob(z)

        return log_weights

    def encode(self, x: Images, step: int = 0, condition: Tensor | None = None) -> BottleneckOutput:
        """Raises ValueError when images do not have the configured size, channels and range type."""
        return self._bottleneck(self._unit_range(x), step, self._embed(condition, len(x)))

    def features(self, x: Images, condition: Tensor | None = None) -> Float[Tensor, "b c2 h2 w2"]:
        """What the bottleneck is given. Raises ValueError as `encode` does."""
        return self._features(self._unit_range(x), self._embed(condition, len(x)))

    def decode(self, z: Float[Tensor, "b d h w"], condition: Tensor | None = None) -> Float[Tensor, "b c h2 w2"]:
        """The likelihood's mean, in [0, 1]."""
        return self.likelihood.mean(self._decoder(z, self._embed(condition, len(z))))

    def maps_and_nll(
        self, x: Images, z: Float[Tensor, "b k d h2 w2"], condition: Tensor | None = None
    ) -> tuple[Float[Tensor, "bk p h w"], Float[Tensor, "b k"]]:
        """The likelihood's maps of k latents of each image, and -ln p(x | z) in nats."""
        return self._nll(self._unit_range(x), z, self._embed(condition, len(x)))

    def decode_codes(
        self, codes: Integer[Tensor, " b *codes"], condition: Tensor | None = None
    ) -> Float[Tensor, "b c h2 w2"]:
        """Images in [0, 1] of codes of any integer dtype.

        Raises ValueError for a continuous latent, another grid, or codes out of range.
        """
        quantizer = self.quantizer
        if tuple(codes.shape[1:]) != (expected := code_axes(self.code_grids)):
            meaning = "rows, columns, num_quantizers" if len(expected) == 3 else "the codes of all levels"
            raise ValueError(f"codes have the grid {tuple(codes.shape[1:])}, expected {expected} ({meaning})")
        return self.decode(quantizer.codes_to_latents(codes), condition)

    def reconstruct(self, x: Images, condition: Tensor | None = None) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1], from the codes or the posterior's mean."""
        embedded = self._embed(condition, len(x))
        return self.likelihood.mean(self._decoder(self._bottleneck(self._unit_range(x), 0, embedded).z, embedded))

    def sample(
        self,
        n: int,
        generator: Generators = None,
        condition: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Float[Tensor, "n c h w"]:
        """n new images in [0, 1] (the likelihood's mean) from the latent prior, see `LatentDistribution.sample`.

        Raises ValueError for a discrete latent: its prior is a transformer of its own, trained on the codes.
        """
        prior = self.latent_distribution(condition)
        if prior is None:
            raise ValueError(
                f"a {self.config.bottleneck.kind} bottleneck has no prior to sample from: "
                "train a token prior on its codes, sample that, and decode_codes"
            )
        z = prior.sample(n, generator, temperature)
        return self.decode(z.to(next(self.decoder.parameters()).device), condition)

    @property
    def prior_takes_labels(self) -> bool:
        """Whether p(z) depends on the label."""
        return self.config.latent_prior.conditional

    def latent_distribution(self, condition: Tensor | None = None) -> LatentDistribution | None:
        """p(z) with the weights of this moment; None if the latent is discrete.

        Where it depends on the label, one for each of the labels `condition` (b,), or that of no label for all.
        """
        if not self.prior_takes_labels:
            return self._prior_given(None)
        return self._prior_given(self._embed(condition, 1 if condition is None else len(condition)))

    def after_step(self, step: int) -> None:
        """Lets the bottleneck learn from what it collected. Call it once after each optimizer step, on every rank."""
        self.bottleneck.after_step(step)

    def term_names(self) -> set[str]:
        """The losses that `forward` names."""
        out = self.probe()
        return {*out.terms, *out.batch_terms}

    def probe(self, detached_density: bool = False) -> AutoencoderOutput:
        """What `forward` gives for one black image in evaluation mode."""
        size = self.config.image_size
        black = torch.zeros(1, self.config.channels, size, size, device=next(self.parameters()).device)
        with torch.no_grad(), evaluating(self):
            return self(black, generator=torch.Generator(), detached_density=detached_density)

    def encode_config(self) -> dict[str, Any]:
        """The options that decide which codes an image gets; those at their defaults are left out."""
        condition = {"condition": self.config.condition.encode_config()} if self.config.condition else {}
        return condition | {
            "image_size": self.config.image_size,
            "channels": self.config.channels,
            "backbone": self.config.backbone.encode_config(),
            "bottleneck": self.config.bottleneck.encode_config(),
            "input_range": self.likelihood.inmap.__name__,
        }

    def encode_state(self) -> dict[str, Tensor]:
        """The tensors that decide which codes an image gets: encoder's, bottleneck's and condition's, by name."""
        parts = {"encoder": self.encoder} | ({"condition": self.condition} if self.condition is not None else {})
        encoder = {f"{part}.{name}": tensor for part in parts for name, tensor in parts[part].state_dict().items()}
        return encoder | {f"bottleneck.{name}": tensor for name, tensor in self.bottleneck.encode_state().items()}

    @property
    def _continuous(self) -> ContinuousBottleneck:
        return cast(ContinuousBottleneck, self.bottleneck)

    def _embed(self, labels: Tensor | None, count: int) -> Float[Tensor, "b dim"] | None:
        """The condition as layers take it: one embedding for each of `count` images."""
        if self.condition is not None:
            return self.condition(labels, count)
        if labels is not None:
            raise ValueError("labels: found some, but the model has no condition; expected None")
        return None

    def _prior_given(self, condition: Float[Tensor, "#b dim"] | None) -> LatentDistribution | None:
        """p(z), or p(z | condition) of a conditional prior. VampPrior's images have no label."""
        if self.latent_prior is None:
            return None
        posterior_of = lambda x: self._posterior(x, self._embed(None, len(x)))  # noqa: E731
        return self._continuous.joint_prior(self.latent_prior, posterior_of, condition)

    def _bottleneck(self, x: Float[Tensor, "b c h w"], step: int, condition: Tensor | None) -> BottleneckOutput:
        return self.bottleneck(self._features(x, condition), step)

    def _features(self, x: Float[Tensor, "b c h w"], condition: Tensor | None) -> Float[Tensor, "b d h2 w2"]:
        return self.encoder(self.likelihood.inmap(x).to(next(self.encoder.parameters()).dtype), condition)

    def _decoder(self, z: Float[Tensor, "b d h w"], condition: Tensor | None) -> Float[Tensor, "b p h2 w2"]:
        seen = z if self.latent_prior is None else self._continuous.decoder_input(z)
        return self.decoder(seen.to(next(self.decoder.parameters()).dtype), condition)

    def _nll(
        self, x: Float[Tensor, "b c h w"], z: Float[Tensor, "b k d h2 w2"], condition: Tensor | None
    ) -> tuple[Float[Tensor, "bk p h w"], Float[Tensor, "b k"]]:
        """The likelihood's maps of every draw, and -ln p(x | z)."""
        b, draws = z.shape[:2]
        if draws > 1 and condition is not None:
            condition = condition.repeat_interleave(draws, 0)
        params = self._decoder(z.flatten(0, 1), condition)
        return params, self.likelihood.nll(params.unflatten(0, (b, draws)), x[:, None])

    def _posterior(self, x: Float[Tensor, "n c h w"], condition: Tensor | None) -> Posterior:
        posterior = self._bottleneck(x.contiguous(memory_format=torch.channels_last), 0, condition).posterior
        if posterior is None:
            raise ValueError(f"the latent of a {self.config.bottleneck.kind} bottleneck is not random")
        return posterior

    def _kl(
        self, posterior: Posterior, prior: Any, z: Float[Tensor, "b k d h w"], detached: bool
    ) -> tuple[Float[Tensor, "b k"], tuple[Tensor, ...] | None]:
        """KL(q(z | x) || p(z)) in closed form, with its elements, or ln q(z | x) - ln p(z) of each draw, which has it
        as its mean.

        Several draws need the latter: the importance-weighted bound is not one of means (arXiv 1509.00519, equation 8).
        """
        if z.shape[1] == 1 and not detached:
            elements = posterior.kl(prior, z[:, 0])
            if elements is not None:
                return torch.stack([level.flatten(1).sum(1) for level in elements]).sum(0)[:, None], elements
        density = posterior.detach() if detached else posterior
        if density is None:
            raise ValueError(f"the density of a {self.config.bottleneck.kind} posterior cannot be detached")
        return density.log_prob(z) - prior.log_prob(z), None

    def _unit_range(self, x: Tensor) -> Tensor:
        expected = (self.config.channels, self.config.image_size, self.config.image_size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"images have the shape {tuple(x.shape[1:])}, expected {expected} (channels, height, width)"
            )
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise ValueError(f"images are {x.dtype}, expected torch.uint8, or floating point in [0, 1]")
        # Convolutions keep this layout to the end of the network; on a CPU it saves them a fifth of their time.
        unit = x.to(torch.float32, memory_format=torch.channels_last)
        return unit / 255 if x.dtype == torch.uint8 else unit


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """`module` in evaluation mode; each part returns to its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for part, training in modes:
            part.training = training
