"""Whether a continuous latent is used: figures over a window of images, never a batch, and a verdict in words."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed

from tokenizer.codebook_health import SEVERITY, Verdict
from tokenizer.divergences import gaussian_kl
from tokenizer.latents import LatentDistribution, Posterior
from tokenizer.noise import Generators

# Of the posterior's mean over images (Burda et al. 2015, arXiv 1509.00519, section 5.2), where the prior is N(0, 1).
# Other priors fix no scale. There it is a share of the aggregate variance, which is about 1 where q(z) is near N(0, 1).
ACTIVE_VARIANCE = 0.01
ACTIVE_KL = 0.01  # nats, of a unit below the top level; under N(0, 1) a mean of that variance has at least half as much
# A posterior collapses as a whole or unit by unit. Good VAEs leave units unused: of IWAE's 50 on MNIST about 20 are
# active. So the thresholds are low.
COLLAPSED_ACTIVE = 0.05
COLLAPSED_KL = 1.0  # nats an image; below, an image's latent hardly tells it from e others
WEAK_ACTIVE = 0.10
WEAK_AGGREGATE_KL = 0.5  # nats, mean over active units; a standard deviation of 1.7, or a mean of 1, has as much
ROUNDING = 1e-8  # of squares, relative: about that of float32
DRAWS = 8  # of each posterior, to estimate its variance; over a window of images the error is far below 1 %
MAX_JOINT = 2048  # units; of more no covariance is kept, and the total correlation is not known


@dataclass(frozen=True)
class LevelState:
    """One level of the latent. kl: nats an image, the mean over images; None if it is not known."""

    units: int
    active_units: int
    kl: float | None
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class LatentHealth:
    """The state of n latent units (the flattened latent) over a window of images. Divergences are in nats.

    kl: KL(q(z_i | x) || p(z_i)), mean over images; None if the posterior has no figure for each unit.
    mean_variance: of the posterior's mean, over images.
    spread: mean_variance where the prior of the top level is N(0, 1); otherwise, below the top, and of a latent that is
        not random, its share of aggregate_variance, which does not depend on the scale of the latent.
    active: whether spread is over ACTIVE_VARIANCE. Below the top level of a hierarchy a mean also varies with the
        levels above; there, whether kl is over ACTIVE_KL.
    aggregate_mean, aggregate_variance: of the aggregate posterior q(z), the mixture of all images' posteriors.
    aggregate_kl: of the normal of the same moments to N(0, 1), by unit. For a standard normal prior, kl - aggregate_kl
        bounds from above what the unit tells about the image.
    total_correlation: of the normal with q(z)'s mean and covariance; too large by about n^2 / (4 images) if the
        units are independent; None for more than MAX_JOINT units or a singular covariance.
    levels: from the top; one where the latent has no levels. verdict, reason: those of the worst.
    """

    images: int
    kl: Float[Tensor, " n"] | None
    active: Bool[Tensor, " n"]
    mean_variance: Float[Tensor, " n"]
    spread: Float[Tensor, " n"]
    aggregate_mean: Float[Tensor, " n"]
    aggregate_variance: Float[Tensor, " n"]
    aggregate_kl: Float[Tensor, " n"]
    total_correlation: float | None
    levels: tuple[LevelState, ...]
    verdict: Verdict
    reason: str

    @property
    def active_units(self) -> int:
        return int(self.active.sum())

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, fit for JSON."""
        content = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        return content | {"active_units": self.active_units, "levels": [vars(level) for level in self.levels]}


class LatentMoments:
    """Moments of the posteriors of a window of images, on `device`, in double precision.

    sizes: the units of each level, from the top; one number where the latent has no levels.
    """

    def __init__(self, *sizes: int, device: torch.device | str = "cpu"):
        self.sizes, self.num_units, self.device = sizes, sum(sizes), torch.device(device)
        self.joint = self.num_units <= MAX_JOINT
        self.reset()

    def reset(self) -> None:
        """Begins a new window."""
        zeros = torch.zeros(self.num_units, dtype=torch.float64, device=self.device)
        self.images = 0
        self.mean, self.variance = zeros.clone(), zeros.clone()
        # Sum over images of squared deviations from the mean: of each unit, or of each pair.
        self.deviation = torch.zeros(self.num_units, self.num_units).to(zeros) if self.joint else zeros.clone()
        self.kl = zeros.clone()  # not a number where it is not known, which whatever is added leaves so
        self.level_kl = zeros.new_zeros(len(self.sizes))

    @torch.no_grad()
    def update(
        self,
        mean: Float[Tensor, "b n"],
        variance: Float[Tensor, "b n"],
        kl: Float[Tensor, "b n"] | None = None,
        level_kl: Float[Tensor, "b levels"] | None = None,
    ) -> None:
        """Adds the posteriors of b images: mean, variance and KL to the prior of each unit, and the KL of each level.

        kl: None, or not a number, where it is not known. level_kl: the sum of `kl` if it is not given. What is not
        known of one block is not known of the window. ValueError if n is not num_units.
        """
        if mean.shape[1] != self.num_units:
            raise ValueError(f"found {mean.shape[1]} latent units, expected {self.num_units}")
        if not len(mean):
            return
        if kl is None:
            kl = torch.full_like(mean, math.nan)
        if level_kl is None:
            level_kl = torch.stack([level.sum(1) for level in kl.double().split(self.sizes, 1)], 1)
        block = LatentMoments(*self.sizes, device=self.device)
        mean = mean.to(self.device, torch.float64)
        block.images, block.mean = len(mean), mean.mean(0)
        block.variance = variance.to(self.device, torch.float64).mean(0)
        centred = mean - block.mean
        block.deviation = centred.T @ centred if self.joint else centred.square().sum(0)
        block.kl = kl.to(self.device, torch.float64).mean(0)
        block.level_kl = level_kl.to(self.device, torch.float64).mean(0)
        self._merge(block)

    @torch.no_grad()
    def observe(self, posterior: Posterior, prior: LatentDistribution, generator: Generators = None) -> None:
        """Adds the posteriors of a batch of images, of any kind: their variances are those of a few draws.

        A KL without closed form is ln q(z | x) - ln p(z) of one draw: near zero, where it matters, its variance over
        images is small. ValueError if the posterior's levels are not those of the window.
        """
        z = posterior.sample(DRAWS, generator)
        levels = posterior.kl(prior, z[:, 0])
        if levels is None:  # the posterior knows the density of all draws together
            sampled = posterior.log_prob(z)[:, :1] - prior.log_prob(z[:, :1])
            levels = (sampled[..., None, None],)
        if len(levels) != len(self.sizes):
            raise ValueError(f"found {len(levels)} levels of the latent, expected {len(self.sizes)}")
        units, totals = [], []
        for level, size in zip(levels, self.sizes, strict=True):
            each = level.flatten(1).double()
            totals.append(each.sum(1))
            # Of a level whose elements are not independent, or whose KL is sampled, there is one figure.
            units.append(each if each.shape[1] == size else each.new_full((len(each), size), math.nan))
        self.update(
            posterior.mean.flatten(1), z.double().var(1).flatten(1), torch.cat(units, 1), torch.stack(totals, 1)
        )

    def _merge(self, other: "LatentMoments") -> None:
        """Adds another window (Chan, Golub, LeVeque 1983: equations 2.1). Nothing is lost if means are large."""
        share = other.images / (self.images + other.images)
        apart = other.mean - self.mean
        squares = torch.outer(apart, apart) if self.joint else apart.square()
        self.deviation = self.deviation + other.deviation + self.images * share * squares
        self.mean = self.mean + share * apart
        self.variance = self.variance.lerp(other.variance, share)
        self.kl = self.kl + share * (other.kl - self.kl)
        self.level_kl = self.level_kl + share * (other.level_kl - self.level_kl)
        self.images += other.images

    def all_reduce(self) -> None:
        """Makes one window of the windows of all ranks; does nothing in a single process."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        images = self.mean.new_tensor([self.images])
        flat = torch.cat([images, self.mean, self.variance, self.kl, self.level_kl, self.deviation.flatten()])
        windows = [torch.empty_like(flat) for _ in range(distributed.get_world_size())]
        distributed.all_gather(windows, flat)
        self.reset()
        for window in windows:
            if window[0]:
                self._merge(self._unpacked(window))

    def _unpacked(self, flat: Float[Tensor, " numbers"]) -> "LatentMoments":
        n = self.num_units
        images, mean, variance, kl, level_kl, deviation = flat.split(
            [1, n, n, n, len(self.sizes), self.deviation.numel()]
        )
        window = LatentMoments(*self.sizes, device=self.device)
        window.images, window.mean, window.variance = int(images), mean, variance
        window.kl, window.level_kl, window.deviation = kl, level_kl, deviation.view_as(self.deviation)
        return window

    def report(self, standard_normal_prior: bool = True) -> LatentHealth:
        """The state over the window. `standard_normal_prior`: of the top level, whose aggregate posterior is compared
        with N(0, 1) only where that is its prior. The prior of a level below depends on those above it.

        Raises ValueError if the window is empty.
        """
        if not self.images:
            raise ValueError("no image has been seen: the health of a latent needs a window of images")
        covariance = (self.deviation / self.images).cpu()
        mean, within = self.mean.cpu(), self.variance.cpu()
        mean_variance = covariance.diagonal().clone() if self.joint else covariance
        variance = (mean_variance + within).clamp_min(1e-30)  # 0 of a constant unit, where nothing is random
        aggregate_kl = gaussian_kl(mean, variance.log())
        top, below = slice(self.sizes[0]), slice(self.sizes[0], None)
        spread = mean_variance / variance
        if not within.any():  # not random: a unit is active at any scale, if it moves by more than rounding
            spread[mean_variance < ROUNDING * (mean.square() + mean_variance.max())] = 0
        elif standard_normal_prior:
            spread[top] = mean_variance[top]
        active, kl = spread > ACTIVE_VARIANCE, self.kl.cpu()
        active[below] = kl[below] > ACTIVE_KL
        levels = self._levels(active, (mean[top], variance[top]) if standard_normal_prior else None)
        worst, reason = _worst(levels)
        return LatentHealth(
            images=self.images,
            kl=None if kl.isnan().any() else kl,
            active=active,
            mean_variance=mean_variance,
            spread=spread,
            aggregate_mean=mean,
            aggregate_variance=variance,
            aggregate_kl=aggregate_kl,
            total_correlation=total_correlation(covariance + within.diag()) if self.joint else None,
            levels=levels,
            verdict=worst,
            reason=reason,
        )

    def _levels(self, active: Bool[Tensor, " n"], top: "Aggregate | None") -> tuple[LevelState, ...]:
        """`top`: the aggregate posterior of the top level, if its prior is N(0, 1)."""
        levels, start = [], 0
        for size, total in zip(self.sizes, self.level_kl.tolist(), strict=True):
            units, kl = slice(start, start := start + size), total if math.isfinite(total) else None
            verdict = _verdict(active[units], kl, None if levels else top, self.images)
            levels.append(LevelState(size, int(active[units].sum()), kl, *verdict))
        return tuple(levels)


def total_correlation(covariance: Float[Tensor, "n n"]) -> float | None:
    """KL(N(0, C) || product of its marginals) = (sum of ln C_ii - ln det C) / 2, nats; None if C is singular."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        return None
    return max(0.0, (0.5 * covariance.diagonal().log() - factor.diagonal().log()).sum().item())


def _worst(levels: tuple[LevelState, ...]) -> tuple[Verdict, str]:
    """The verdict on the whole latent, and its reason, which names the level where there are several."""
    worst = max(levels, key=lambda level: SEVERITY.index(level.verdict))
    if len(levels) == 1:
        return worst.verdict, worst.reason
    if worst.verdict == "healthy":
        return worst.verdict, "; ".join(f"level {i}: {level.reason}" for i, level in enumerate(levels, 1))
    return worst.verdict, f"level {levels.index(worst) + 1} of {len(levels)}, from the top: {worst.reason}"


Aggregate = tuple[Float[Tensor, " n"], Float[Tensor, " n"]]  # mean and variance


def _information(kl: float, aggregate: Aggregate | None, images: int) -> float:
    """What a level tells about an image, in nats, at most: `kl` without KL(q(z) || N(0, 1)), where that is the prior.

    The mean of KL(q(z | x) || p(z)) is the mutual information of x and z plus KL(q(z) || p(z)) (Hoffman & Johnson 2016,
    "ELBO surgery"). The latter is at least that of the normal of the same moments, also with a variance over 1 set to
    1: of large ones the few draws say too little. From so few `images` it seems larger by up to 1 / images a unit.
    """
    if aggregate is None:
        return kl
    mean, variance = aggregate
    apart = gaussian_kl(mean, variance.clamp_max(1).log()).sum().item()
    return kl - max(0.0, apart - len(mean) / images)


def _verdict(
    active: Bool[Tensor, " n"], kl: float | None, aggregate: Aggregate | None, images: int
) -> tuple[Verdict, str]:
    count, share = int(active.sum()), active.double().mean().item()
    units = f"{count} of {len(active)} units active"
    total = math.inf if kl is None else kl
    information = max(0.0, _information(total, aggregate, images))
    nats = f"KL {total:.2f} nats an image"
    alike = ""
    if information < COLLAPSED_KL <= total:  # which free bits or a capacity can be satisfied with
        alike = f": its KL of {total:.2f} nats is of posteriors far from the prior, but alike for all images"
    apart = 0.0
    if aggregate is not None and count:
        apart = gaussian_kl(aggregate[0][active], aggregate[1][active].log()).mean().item()
    findings: list[tuple[bool, Verdict, str]] = [
        (count == 0, "collapsed", f"{units}{alike or ': the latent tells nothing about its image'}"),
        (share < COLLAPSED_ACTIVE, "collapsed", f"{units}, under {COLLAPSED_ACTIVE:.0%}"),
        (
            total < COLLAPSED_KL,
            "collapsed",
            f"{nats}, under {COLLAPSED_KL:g}: the latent tells nearly nothing about its image",
        ),
        (
            information < COLLAPSED_KL,
            "collapsed",
            f"the latent tells at most {information:.2f} nats about its image, under {COLLAPSED_KL:g}{alike}",
        ),
        (share < WEAK_ACTIVE, "weak", f"{units}, under {WEAK_ACTIVE:.0%}"),
        (
            apart > WEAK_AGGREGATE_KL,
            "weak",
            f"the aggregate posterior is {apart:.2f} nats a unit from the prior, over {WEAK_AGGREGATE_KL:g}: "
            "samples of the prior lie where the decoder has seen no image",
        ),
    ]
    for found, verdict, reason in findings:
        if found:
            return verdict, reason
    return "healthy", units if kl is None else f"{units}, {nats}"
