"""Whether a continuous latent is used: figures over a window of images, never a batch, and a verdict in words."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed

from tokenizer.divergences import gaussian_kl
from tokenizer.latents import LatentDistribution, Posterior
from tokenizer.noise import Generators

ACTIVE_VARIANCE = 0.01  # of the posterior's mean over images (Burda et al. 2015, arXiv 1509.00519, section 5.2)
# A posterior collapses as a whole or unit by unit. Good VAEs leave units unused: of IWAE's 50 on MNIST about 20 are
# active. So the thresholds are low.
COLLAPSED_ACTIVE = 0.05
COLLAPSED_KL = 1.0  # nats an image; below, an image's latent hardly tells it from e others
WEAK_ACTIVE = 0.10
WEAK_AGGREGATE_KL = 0.5  # nats, mean over active units; a standard deviation of 1.7, or a mean of 1, has as much
DRAWS = 8  # of each posterior, to estimate its variance; over a window of images the error is far below 1 %
MAX_JOINT = 2048  # units; of more no covariance is kept, and the total correlation is not known

Verdict = Literal["healthy", "weak", "collapsed"]


@dataclass(frozen=True)
class LatentHealth:
    """The state of n latent units (the flattened latent) over a window of images. Divergences are in nats.

    kl: KL(q(z_i | x) || p(z_i)), mean over images; None if the posterior has no figure for each unit.
    active: whether the posterior's mean varies over images by more than ACTIVE_VARIANCE; mean_variance: how much.
    aggregate_mean, aggregate_variance: of the aggregate posterior q(z), the mixture of all images' posteriors.
    aggregate_kl: of the normal of the same moments to N(0, 1), by unit. For a standard normal prior, kl - aggregate_kl
        bounds from above what the unit tells about the image.
    total_correlation: of the normal with q(z)'s mean and covariance; too large by about n^2 / (4 images) if the
        units are independent; None for more than MAX_JOINT units or a singular covariance.
    """

    images: int
    kl: Float[Tensor, " n"] | None
    active: Bool[Tensor, " n"]
    mean_variance: Float[Tensor, " n"]
    aggregate_mean: Float[Tensor, " n"]
    aggregate_variance: Float[Tensor, " n"]
    aggregate_kl: Float[Tensor, " n"]
    total_correlation: float | None
    verdict: Verdict
    reason: str

    @property
    def active_units(self) -> int:
        return int(self.active.sum())

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, fit for JSON."""
        content = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        return content | {"active_units": self.active_units}


class LatentMoments:
    """Moments of the posteriors of a window of images, on `device`, in double precision."""

    def __init__(self, num_units: int, device: torch.device | str = "cpu"):
        self.num_units, self.device = num_units, torch.device(device)
        self.joint = num_units <= MAX_JOINT
        self.reset()

    def reset(self) -> None:
        """Begins a new window."""
        zeros = torch.zeros(self.num_units, dtype=torch.float64, device=self.device)
        self.images = 0
        self.mean, self.variance = zeros.clone(), zeros.clone()
        # Sum over images of squared deviations from the mean: of each unit, or of each pair.
        self.deviation = torch.zeros(self.num_units, self.num_units).to(zeros) if self.joint else zeros.clone()
        self.kl: Tensor | None = zeros.clone()

    @torch.no_grad()
    def update(
        self, mean: Float[Tensor, "b n"], variance: Float[Tensor, "b n"], kl: Float[Tensor, "b n"] | None = None
    ) -> None:
        """Adds the posteriors of b images: mean, variance and KL to the prior of each unit (None if there is none).

        A window with a block without `kl` has none. ValueError if n is not num_units.
        """
        if mean.shape[1] != self.num_units:
            raise ValueError(f"found {mean.shape[1]} latent units, expected {self.num_units}")
        if not len(mean):
            return
        block = LatentMoments(self.num_units, self.device)
        mean = mean.to(self.device, torch.float64)
        block.images, block.mean = len(mean), mean.mean(0)
        block.variance = variance.to(self.device, torch.float64).mean(0)
        centred = mean - block.mean
        block.deviation = centred.T @ centred if self.joint else centred.square().sum(0)
        block.kl = None if kl is None else kl.to(self.device, torch.float64).mean(0)
        self._merge(block)

    @torch.no_grad()
    def observe(self, posterior: Posterior, prior: LatentDistribution, generator: Generators = None) -> None:
        """Adds the posteriors of a batch of images, of any kind: their variances are those of a few draws."""
        z = posterior.sample(DRAWS, generator)
        levels = posterior.kl(prior, z[:, 0])
        kl = None if levels is None else torch.cat([level.flatten(1) for level in levels], 1)
        if kl is not None and kl.shape[1] != self.num_units:  # of a level whose elements are not independent
            kl = None
        self.update(posterior.mean.flatten(1), z.double().var(1).flatten(1), kl)

    def _merge(self, other: "LatentMoments") -> None:
        """Adds another window (Chan, Golub, LeVeque 1983: equations 2.1). Nothing is lost if means are large."""
        share = other.images / (self.images + other.images)
        apart = other.mean - self.mean
        squares = torch.outer(apart, apart) if self.joint else apart.square()
        self.deviation = self.deviation + other.deviation + self.images * share * squares
        self.mean = self.mean + share * apart
        self.variance = self.variance.lerp(other.variance, share)
        self.kl = None if self.kl is None or other.kl is None else self.kl.lerp(other.kl, share)
        self.images += other.images

    def all_reduce(self) -> None:
        """Makes one window of the windows of all ranks; does nothing in a single process."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        has_kl = self.kl is not None
        own = [torch.tensor([self.images, has_kl]).to(self.mean), self.mean, self.variance, self.deviation.flatten()]
        flat = torch.cat([*own, self.kl if self.kl is not None else torch.zeros_like(self.mean)])
        windows = [torch.empty_like(flat) for _ in range(distributed.get_world_size())]
        distributed.all_gather(windows, flat)
        self.reset()
        for window in windows:
            if window[0]:
                self._merge(self._unpacked(window))

    def _unpacked(self, flat: Float[Tensor, " numbers"]) -> "LatentMoments":
        n = self.num_units
        (images, has_kl), mean, variance, deviation, kl = flat.split([2, n, n, self.deviation.numel(), n])
        window = LatentMoments(n, self.device)
        window.images, window.mean, window.variance = int(images), mean, variance
        window.deviation, window.kl = deviation.view_as(self.deviation), kl if has_kl else None
        return window

    def report(self, standard_normal_prior: bool = True) -> LatentHealth:
        """The state over the window. An aggregate posterior far from N(0, 1) is weak only where that is the prior.

        Raises ValueError if the window is empty.
        """
        if not self.images:
            raise ValueError("no image has been seen: the health of a latent needs a window of images")
        covariance = (self.deviation / self.images).cpu()
        mean, within = self.mean.cpu(), self.variance.cpu()
        mean_variance = covariance.diagonal().clone() if self.joint else covariance
        variance = mean_variance + within
        aggregate_kl = gaussian_kl(mean, variance.log())
        active = mean_variance > ACTIVE_VARIANCE
        kl = None if self.kl is None else self.kl.cpu()
        verdict, reason = _verdict(active, kl, aggregate_kl if standard_normal_prior else None)
        return LatentHealth(
            images=self.images,
            kl=kl,
            active=active,
            mean_variance=mean_variance,
            aggregate_mean=mean,
            aggregate_variance=variance,
            aggregate_kl=aggregate_kl,
            total_correlation=total_correlation(covariance + within.diag()) if self.joint else None,
            verdict=verdict,
            reason=reason,
        )


def total_correlation(covariance: Float[Tensor, "n n"]) -> float | None:
    """KL(N(0, C) || product of its marginals) = (sum of ln C_ii - ln det C) / 2, nats; None if C is singular."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        return None
    return max(0.0, (0.5 * covariance.diagonal().log() - factor.diagonal().log()).sum().item())


def _verdict(
    active: Bool[Tensor, " n"], kl: Float[Tensor, " n"] | None, aggregate_kl: Float[Tensor, " n"] | None
) -> tuple[Verdict, str]:
    count, share = int(active.sum()), active.double().mean().item()
    units = f"{count} of {len(active)} units active"
    total = math.inf if kl is None else kl.sum().item()
    nats = f"KL {total:.2f} nats an image"
    apart = 0.0 if aggregate_kl is None or not count else aggregate_kl[active].mean().item()
    findings: list[tuple[bool, Verdict, str]] = [
        (count == 0, "collapsed", f"{units}: the latent is the same for every image"),
        (share < COLLAPSED_ACTIVE, "collapsed", f"{units}, under {COLLAPSED_ACTIVE:.0%}"),
        (
            total < COLLAPSED_KL,
            "collapsed",
            f"{nats}, under {COLLAPSED_KL:g}: the latent tells nearly nothing about its image",
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
