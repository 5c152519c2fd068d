"""A codebook learns from the whole batch of a step, however many parts the loop cuts it into."""

import pytest
import torch

from pipelines.training.optimizer import OptimizerConfig
from tests.pipelines.training.toy import QUICK, ToyTask, run, weights
from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderPhase, ObjectiveConfig

MODEL = {
    "image_size": 8,
    "channels": 1,
    "backbone": {"kind": "conv", "widths": (4, 8), "residual_blocks": 1, "residual_width": 4},
    "likelihood": {"kind": "normal"},
}


def images(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    coarse = torch.randint(0, 256, (24, 1, 2, 2), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)


def trained_codebook(path, parts, bottleneck):
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig.model_validate({**MODEL, "bottleneck": bottleneck}))
    phase = AutoencoderPhase(model, ObjectiveConfig.model_validate({"weights": {"nll": 1, "commitment": 0.25}}))
    update = {
        "steps": 7,
        "gradient_accumulation_steps": parts,
        "ema_decay": None,
        "optimizer": OptimizerConfig(
            learning_rate=1e-5
        ),  # so that sums in another order move no vector to another code
    }
    task = ToyTask(QUICK.model_copy(update=update), {"toy": phase}, lambda step, batch: {"image": images(step)})
    task.validate = lambda models, collective: {"error": 1.0}
    return weights(run(path / str(parts), task))["toy"]


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize(
    "options",
    [{"num_quantizers": 2}, {"dead_code_threshold": 2.0, "restart_every": 3}],
    ids=["moving averages", "restarts"],
)
def test_parts_give_the_codebook_of_one_batch(tmp_path, parts, options):
    bottleneck = {"kind": "vq", "num_codes": 32, "dim": 4, "kmeans_init": False, **options}
    whole, cut = (trained_codebook(tmp_path, count, bottleneck) for count in (1, parts))
    learned = [name for name in whole if "ema" in name or "embedding" in name]
    assert learned
    for name in learned:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-4, atol=1e-5)
