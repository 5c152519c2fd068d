"""Validation says how much of the latent is used, and says once that it has collapsed or is used again."""

import pytest
import torch

from pipelines.base import distributed
from pipelines.training.collective import Collective
from pipelines.training.latent_usage import LatentUsage, collapse_in_words
from pipelines.training.tokenizer_task import TokenizerTask
from tests.pipelines.conftest import grey_data
from tests.pipelines.training.toy import QUICK
from tokenizer import AutoencoderConfig, ObjectiveConfig

VAE = {
    "image_size": 16,
    "channels": 1,
    "backbone": {"kind": "mlp", "widths": [12]},
    "bottleneck": {"kind": "gaussian", "dim": 5},
    "likelihood": {"kind": "bernoulli"},
}
VQ = VAE | {"bottleneck": {"kind": "vq", "num_codes": 8, "dim": 2, "kmeans_init": False}}


def task_of(model, weights):
    data = grey_data(train=16, validation=40, test=1)
    training = QUICK.model_copy(update={"validation_images": 40})
    objective = ObjectiveConfig.model_validate({"weights": weights})
    return TokenizerTask(data, AutoencoderConfig.model_validate(model), objective, training, seed=0)


def validate(task, scale):
    """With the encoder's weights multiplied by `scale`."""
    model = task.phases["tokenizer"].phase.model
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.mul_(scale)
    return task.validate({"tokenizer": model.eval()}, Collective(distributed.start()))


def test_active_units_are_counted_and_a_used_latent_is_no_reason_to_warn(capsys):
    torch.manual_seed(0)
    task = task_of(VAE, {"nll": 1, "kl": 1})
    assert validate(task, 4)["active_units"] == 5
    assert "collapsed" not in capsys.readouterr().err


def test_a_collapsed_latent_is_named_once(capsys):
    task = task_of(VAE, {"nll": 1, "kl": 1})
    assert validate(task, 0)["active_units"] == 0
    assert validate(task, 0)["active_units"] == 0
    said = capsys.readouterr().err
    assert said.count("smalti: the latent has collapsed: 0 of 5 units active") == 1 and "objective.kl_guard" in said


def test_a_latent_that_is_used_again_is_named_too(capsys):
    torch.manual_seed(0)
    task = task_of(VAE, {"nll": 1, "kl": 1})
    start = {name: tensor.clone() for name, tensor in task.phases["tokenizer"].phase.model.state_dict().items()}
    for scale in (0, 4, 4, 0):
        task.phases["tokenizer"].phase.model.load_state_dict(start)
        validate(task, scale)
    said = [line.split(":")[1] for line in capsys.readouterr().err.splitlines() if line.startswith("smalti:")]
    assert said == [" the latent has collapsed", " the latent is used again", " the latent has collapsed"]


def test_a_collapsed_codebook_is_named_too(capsys):
    task = task_of(VQ, {"nll": 1, "commitment": 0.25})
    assert validate(task, 0).keys() >= {"usage", "perplexity"}
    assert "smalti: the codebook has collapsed: " in capsys.readouterr().err


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_latent_that_is_neither_random_nor_discrete_has_no_state(scale):
    task = task_of(VAE | {"bottleneck": {"kind": "deterministic", "dim": 5}}, {"nll": 1})
    assert not validate(task, scale).keys() & {"active_units", "usage"}
    usage = LatentUsage(task.phases["tokenizer"].phase.model, torch.device("cpu"))
    assert usage.report() is None and collapse_in_words(None, False) is None


def test_the_levels_of_a_hierarchical_latent_are_not_compared_with_the_standard_normal():
    """The prior of a level below the top depends on those above it."""
    ladder = VAE | {"bottleneck": {"kind": "ladder", "dims": [2, 3], "width": 8}}
    compared = {}
    for name, model in (("flat", VAE), ("ladder", ladder)):
        task = task_of(model, {"nll": 1, "kl": 1})
        compared[name] = LatentUsage(task.phases["tokenizer"].phase.model, torch.device("cpu")).standard_normal_prior
        assert 0 <= validate(task, 1)["active_units"] <= 5
        sizes = LatentUsage(task.phases["tokenizer"].phase.model, torch.device("cpu")).moments.sizes
        assert sizes == ((5,) if name == "flat" else (2, 3))
    assert compared == {"flat": True, "ladder": False}
