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
    """figures: by name, one number for each image. codes: those of the images, None if the latent is continuous.

    posterior, latent_prior: q(z | x) and p(z), None if the latent is not random, or discrete.
    """

    figures: dict[str, Float[Tensor, " b"]]
    codes: Int[Tensor, " b *codes"] | None
    posterior: Posterior | None = None
    latent_prior: LatentDistribution | None = None


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
    whatever the weights: an upper bound of -ln p(x), by importance weights if the objective has several draws.

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
            figures["negative_elbo"] = importance_bound(out.terms["nll"] + out.terms["kl"])
            shown = model.decode(out.bottleneck.z, condition)
        figures["psnr"] = psnr(shown, images)
        if out.bottleneck.relaxed is not None:
            figures |= _relaxed_figures(model, images, out.bottleneck.relaxed(generators), figures["nll"])
    return Evaluation(figures, out.bottleneck.codes, out.bottleneck.posterior, out.latent_prior)


def _relaxed_figures(
    model: Autoencoder, images: Images, z: Float[Tensor, "b d h2 w2"], hard_nll: Float[Tensor, " b"]
) -> dict[str, Float[Tensor, " b"]]:
    params, nll = model.maps_and_nll(images, z[:, None])
    shown = psnr(model.likelihood.mean(params), images)
    return {"nll_relaxed": nll[:, 0], "psnr_relaxed": shown, "relaxation_gap": hard_nll - nll[:, 0]}
