"""Figures of held-out images. They are bounds: latents are sampled, each image's from its own random stream."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.autoencoder import Autoencoder, Images, evaluating
from tokenizer.fidelity import psnr
from tokenizer.latents import LatentDistribution, Posterior
from tokenizer.noise import Generators
from tokenizer.objective import ObjectiveConfig, image_loss, importance_bound


@dataclass(frozen=True)
class Evaluation:
    """figures: by name, one number for each image. z: the latents; the posterior's mean, where there is one.

    codes: those of the images, None if the latent is continuous.
    posterior, latent_prior: q(z | x) and p(z), None if the latent is not random, or discrete.
    guarded_kl: of an objective with a guard, the KL of each image in each group that has an allowance of its own.
        "loss" leaves it out: `objective.kl_guard.penalty` wants its mean over all images.
    """

    figures: dict[str, Float[Tensor, " b"]]
    z: Float[Tensor, "b d h w"]
    codes: Int[Tensor, " b *codes"] | None
    posterior: Posterior | None = None
    latent_prior: LatentDistribution | None = None
    guarded_kl: Float[Tensor, "b groups"] | None = None


@torch.no_grad()
def evaluate(
    model: Autoencoder,
    images: Images,
    objective: ObjectiveConfig,
    step: int,
    generators: Generators = None,
    condition: Tensor | None = None,
) -> Evaluation:
    """What the objective and its terms are for each image, in one pass of the encoder.

    With one generator per image no figure depends on how images are batched. Terms of a whole batch would, and are left
    out, from "loss" too.

    Figures: every term (its mean over the draws), "loss" (the objective at `step`, per dimension), "psnr" in dB of the
    reconstruction from the codes or the posterior's mean, and of a continuous model "negative_elbo" = nll + kl in nats
    whatever the weights: an upper bound of -ln p(x). If the objective has several draws also the tighter
    "importance_weighted_nll".

    Of a model that is trained on relaxed codes also "nll_relaxed" and "psnr_relaxed", of a draw of the latents that the
    decoder was trained on last, and "relaxation_gap" = nll - nll_relaxed: what an image loses when codes are single.
    """
    with evaluating(model):
        out = model(images, step, objective.draws, generators, condition)
        figures = {name: term.mean(1) for name, term in out.terms.items()}
        figures["loss"] = image_loss(out, objective, step) / model.dims
        if out.bottleneck.posterior is None:
            shown = model.likelihood.mean(out.params)
        else:
            per_draw = out.terms["nll"] + out.terms["kl"]
            figures["negative_elbo"] = per_draw.mean(1)
            if objective.draws > 1:
                figures["importance_weighted_nll"] = importance_bound(per_draw)
            shown = model.decode(out.bottleneck.z, condition)
        figures["psnr"] = psnr(shown, images)
        if out.bottleneck.relaxed is not None:
            figures |= _relaxed_figures(model, images, out.bottleneck.relaxed(generators), figures["nll"])
    guarded = None
    if objective.kl_guard is not None and out.kl_elements is not None:
        guarded = objective.kl_guard.groups(out.kl_elements)
    bottleneck = out.bottleneck
    return Evaluation(figures, bottleneck.z, bottleneck.codes, bottleneck.posterior, out.latent_prior, guarded)


def _relaxed_figures(
    model: Autoencoder, images: Images, z: Float[Tensor, "b d h2 w2"], hard_nll: Float[Tensor, " b"]
) -> dict[str, Float[Tensor, " b"]]:
    params, nll = model.maps_and_nll(images, z[:, None])
    shown = psnr(model.likelihood.mean(params), images)
    return {"nll_relaxed": nll[:, 0], "psnr_relaxed": shown, "relaxation_gap": hard_nll - nll[:, 0]}
