"""Training on a CUDA device: precisions, compilation, resuming, no waiting for the device, two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.base import distributed
from pipelines.training.loop import TrainingLoop
from pipelines.training.optimizer import OptimizerConfig
from pipelines.training.run_folder import RunFolder
from prior import PriorConfig, PriorPhase, TokenPrior, TransformerConfig, Vocabulary
from tests.pipelines.training.toy import QUICK, ToyTask, equal, lines, run, weights
from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderPhase, ObjectiveConfig

ROOT = Path(__file__).parents[2]
MODEL = {
    "image_size": 16,
    "channels": 3,
    "backbone": {"kind": "conv", "widths": (16, 32), "residual_blocks": 1, "residual_width": 16},
    "bottleneck": {"kind": "vq", "num_codes": 64, "dim": 16, "dead_code_threshold": 1.0, "restart_every": 3},
    "likelihood": {"kind": "normal"},
}
BATCH = 24


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("pipelines.training.loop.draw_curves", lambda metrics, figure: None)


def tokenizer_phase():
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig.model_validate(MODEL))
    return AutoencoderPhase(model, ObjectiveConfig.model_validate({"weights": {"nll": 1, "commitment": 0.25}}))


def prior_phase():
    torch.manual_seed(0)
    transformer = TransformerConfig.model_validate({"dim": 64, "depth": 2, "heads": 2, "head_dim": 32, "dropout": 0.1})
    vocabulary = Vocabulary.of_labels_and_codes(64, (4, 4, 1), 5)
    config = PriorConfig(vocabulary=vocabulary, transformer=transformer, condition_dropout=0.1)
    return PriorPhase(TokenPrior(config))


def batch_of(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    coarse = torch.randint(0, 256, (BATCH, 3, 4, 4), generator=generator, dtype=torch.uint8)
    label = torch.randint(0, 5, (BATCH,), generator=generator)
    codes = (torch.randint(0, 8, (BATCH, 4, 4, 1), generator=generator) + 11 * label[:, None, None, None]) % 64
    return {"image": coarse.repeat_interleave(4, 2).repeat_interleave(4, 3), "label": label, "codes": codes}


STAGES = {"tokenizer": tokenizer_phase, "prior": prior_phase}


def task_of(stage, broken=lambda step: None, **training):
    update = {"optimizer": OptimizerConfig(learning_rate=1e-3, warmup=2), "batch_size": BATCH} | training

    def batch(step, _):
        broken(step)
        return batch_of(step)

    task = ToyTask(QUICK.model_copy(update=update), {"toy": STAGES[stage]()}, batch)
    task.validate = lambda models, collective: {"error": 1.0}
    return task


def losses_of(stage, path, **training):
    optimizer = OptimizerConfig(learning_rate=5e-3, warmup=2)
    update = {"steps": 60, "log_every": 10, "validate_every": 60, "optimizer": optimizer} | training
    folder = run(Path(path), task_of(stage, **update))
    kinds = {value.dtype for value in weights(folder)["toy"].values() if value.is_floating_point()}
    assert kinds == {torch.float32}
    return [line["loss"] for line in lines(folder, "train")]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls(tmp_path, stage, precision):
    """fp16 with its gradient scaler. Weights stay float32."""
    losses = losses_of(stage, tmp_path / "run", precision=precision)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls_when_compiled(tmp_path, stage, precision):
    """In a process of its own: the compiler cannot read functions whose types and shapes the tests check."""
    code = "import sys; from tests.gpu.test_training import losses_of; stage, path, precision = sys.argv[1:]; "
    code += "losses = losses_of(stage, path, precision=precision, compile=True); assert losses[-1] < 0.9 * losses[0]"
    result = subprocess.run(
        [sys.executable, "-c", code, stage, str(tmp_path / "run"), precision],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-4000:]


class Cut(Exception):
    pass


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_resumed_equals_uninterrupted(tmp_path, stage, precision, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(True)

    def cut(step):
        if step == 9:
            raise Cut

    try:
        whole = run(tmp_path / "whole", task_of(stage, precision=precision))
        with pytest.raises(Cut):
            run(tmp_path / "cut", task_of(stage, cut, precision=precision))
        resumed = run(tmp_path / "cut", task_of(stage, precision=precision))
    finally:
        torch.use_deterministic_algorithms(False)
    assert equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_no_step_waits_for_the_device(tmp_path, stage, precision):
    """After the first steps, which place the codebook. Moving a batch that is not pinned waits, so it comes before."""
    task = task_of(stage, precision=precision, log_every=1000, save_every=1000, validate_every=1000, steps=100)
    loop = TrainingLoop(task, task.config, 0, RunFolder(tmp_path), distributed.start(precision))
    loop.train_mode()
    batches = [{name: value.cuda() for name, value in batch_of(step).items()} for step in range(8)]
    for batch in batches[:4]:
        loop.update(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[4:]:
            loop.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_checks_hold_between_two_devices(tmp_path):
    """The checks of tests/pipelines/training/several_processes.py over NCCL."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    result = subprocess.run(
        [*launcher, "-m", "tests.pipelines.training.several_processes", str(tmp_path)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
