"""Figures of held-out images are bounds, are the same in every batch, and cost one pass of the encoder."""

from typing import Any

import pytest
import torch

from tests.tokenizer.members import examples
from tokenizer import Autoencoder, AutoencoderConfig, BottleneckConfig, ObjectiveConfig, evaluate, psnr

BOTTLENECKS = examples(BottleneckConfig)
every_bottleneck = pytest.mark.parametrize("name", BOTTLENECKS)


def build(name: str = "gaussian") -> Any:
    torch.manual_seed(0)
    config = {
        "image_size": 8,
        "channels": 1,
        "backbone": {"kind": "conv", "widths": [4], "residual_blocks": 1, "residual_width": 4},
        "bottleneck": BOTTLENECKS[name].model_dump(),
        "likelihood": {"kind": "bernoulli"},
    }
    return Autoencoder(AutoencoderConfig.model_validate(config))


def vae() -> Any:
    """Its latent says much about the image, so that one draw, many draws and the posterior's mean differ."""
    model = build()
    with torch.no_grad():
        model.encoder[-1].weight.mul_(30)
        for layer in model.decoder:
            if hasattr(layer, "weight"):
                layer.weight.mul_(2)
    return model.eval()


def images(n: int = 6) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def streams(n: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


def unweighted(model: Autoencoder, draws: int = 1) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"weights": dict.fromkeys(model.term_names(), 1), "draws": draws})


def test_the_nll_is_that_of_draws_not_of_the_mean():
    model, x = vae(), images()
    objective = unweighted(model)
    nll = torch.stack([evaluate(model, x, objective, 0, streams(6, 10 * i)).figures["nll"] for i in range(300)])
    with torch.no_grad():
        expected = model(x, draws=2000, generator=torch.Generator().manual_seed(1)).terms["nll"].mean(1)
        at_the_mean = model.likelihood.nll(model.decoder(model.encode(x).z), x)
    error = 5 * nll.std(0) / 300**0.5
    assert ((nll.mean(0) - expected).abs() < error).all()
    assert (expected - at_the_mean > error).all()


def test_the_negative_elbo_is_unweighted_and_the_loss_is_the_objective():
    model = vae()
    objective = ObjectiveConfig.model_validate({"weights": {"nll": 1, "kl": 3}})
    figures = evaluate(model, images(), objective, 0, streams(6)).figures
    torch.testing.assert_close(figures["negative_elbo"], figures["nll"] + figures["kl"])
    torch.testing.assert_close(figures["loss"], (figures["nll"] + 3 * figures["kl"]) / 64)


def test_more_draws_give_a_tighter_bound():
    model, x = vae(), images()
    bounds = [
        torch.stack(
            [
                evaluate(model, x, unweighted(model, k), 0, streams(6, i)).figures["importance_weighted_nll"]
                for i in range(100)
            ]
        ).mean()
        for k in (2, 5, 50)
    ]
    assert bounds[0] > bounds[1] + 0.1 and bounds[1] > bounds[2] + 0.1


def test_the_negative_elbo_is_one_whatever_the_draws():
    model, x = vae(), images()
    figures = evaluate(model, x, unweighted(model, 50), 0, streams(6)).figures
    torch.testing.assert_close(figures["negative_elbo"], figures["nll"] + figures["kl"])
    assert (figures["importance_weighted_nll"] < figures["negative_elbo"]).all()
    assert "importance_weighted_nll" not in evaluate(model, x, unweighted(model), 0).figures


@every_bottleneck
def test_figures_of_an_image_do_not_depend_on_the_batch(name):
    model, x = build(name), images()
    model(x)
    model.after_step(0)
    together = evaluate(model, x, unweighted(model), 0, streams(6)).figures
    for i in range(6):
        alone = evaluate(model, x[i : i + 1], unweighted(model), 0, streams(6)[i : i + 1]).figures
        assert alone.keys() == together.keys()
        for figure, values in together.items():
            torch.testing.assert_close(alone[figure][0], values[i], rtol=1e-4, atol=1e-4)


@every_bottleneck
def test_evaluation_keeps_no_graph_changes_no_buffer_and_encodes_once(name):
    model, x = build(name), images()
    model(x)
    model.after_step(0)
    objective, calls = unweighted(model), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    found = evaluate(model, x, objective, 0)
    assert len(calls) == 1 and model.training
    assert not any(values.requires_grad for values in found.figures.values())
    assert {values.shape for values in found.figures.values()} == {(6,)}
    assert all(torch.equal(before[key], buffer) for key, buffer in model.named_buffers())
    if found.codes is not None:
        assert torch.equal(found.codes, model.eval().encode(x).codes)


@every_bottleneck
def test_psnr_is_that_of_the_reconstruction(name):
    model, x = build(name).eval(), images()
    figures = evaluate(model, x, unweighted(model), 0, streams(6)).figures
    torch.testing.assert_close(figures["psnr"], psnr(model.reconstruct(x), x))
