"""Validation says how much of the latent is used, and says once that it has collapsed or is used again."""

import pytest
import torch

from pipelines.base import distributed
from pipelines.training.collective import Collective
from pipelines.training.latent_usage import LatentUsage
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


def task_of(model, weights, kl_guard=None, **training):
    data = grey_data(train=16, validation=40, test=1)
    training = QUICK.model_copy(update={"validation_images": 40, **training})
    objective = ObjectiveConfig.model_validate({"weights": weights, "kl_guard": kl_guard})
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


def test_a_latent_that_is_not_random_has_a_state_whatever_its_scale(capsys):
    task = task_of(VAE | {"bottleneck": {"kind": "deterministic", "dim": 5}}, {"nll": 1})
    assert validate(task, 0.01)["active_units"] == 5 and "collapsed" not in capsys.readouterr().err
    assert validate(task, 0)["active_units"] == 0
    said = capsys.readouterr().err
    assert "the latent has collapsed: 0 of 5 units active" in said and "kl_guard" not in said


def test_the_top_level_of_a_hierarchical_latent_is_compared_with_the_standard_normal_where_that_is_its_prior():
    ladder = VAE | {"bottleneck": {"kind": "ladder", "dims": [2, 3], "width": 8}}
    mixture = ladder | {"latent_prior": {"kind": "mixture", "components": 3}}
    compared, sizes = [], []
    for model in (VAE, ladder, mixture):
        task = task_of(model, {"nll": 1, "kl": 1})
        usage = LatentUsage(task.phases["tokenizer"].phase.model, torch.device("cpu"))
        assert 0 <= validate(task, 1)["active_units"] <= 5
        compared.append(usage.standard_normal_prior)
        sizes.append(usage.moments.sizes)
    assert compared == [True, True, False] and sizes == [(5,), (2, 3), (2, 3)]


CYCLES = {"kind": "cyclical", "start": 0, "end": 1, "period": 2}


def test_validation_weighs_terms_as_the_last_step_does():
    """One step more would begin the next cycle, at 0."""
    steps = QUICK.steps + QUICK.steps % 2
    task = task_of(VAE, {"nll": 1, "kl": CYCLES}, steps=steps)
    found, dims = validate(task, 1), 16 * 16
    assert found["kl"] > 0.01 and found["loss"] * dims == pytest.approx(found["nll"] + found["kl"], rel=1e-5)


@pytest.mark.parametrize(
    "guard",
    [{"kind": "free_bits", "nats": 0.05}, {"kind": "capacity", "capacity": 2.0}],
    ids=lambda guard: guard["kind"],
)
def test_the_allowances_of_a_guard_are_for_the_mean_over_all_held_out_images(guard):
    """In blocks of any size: the KL of the whole window, guarded once."""
    torch.manual_seed(0)
    found = []
    for batch_size in (4, 8):
        torch.manual_seed(0)
        task = task_of(VAE, {"nll": 1, "kl": 3}, kl_guard=guard, batch_size=batch_size)
        found.append(validate(task, 1))
    model = task.phases["tokenizer"].phase.model
    with torch.no_grad():
        kl = model(task.held_out.read_batch(range(40)).image).kl_elements[0].flatten(1)
    per_unit = kl.mean(0)
    guarded = per_unit.clamp(min=0.05).sum() if guard["kind"] == "free_bits" else (per_unit.sum() - 2).abs()
    for each in found:
        assert each["loss"] * 256 == pytest.approx(each["nll"] + 3 * guarded.item(), rel=1e-5)
        assert not any(name.startswith("guarded") for name in each)
