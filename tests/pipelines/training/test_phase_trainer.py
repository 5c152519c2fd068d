"""One phase at work: where its randomness comes from."""

from contextlib import nullcontext
from itertools import product
from types import SimpleNamespace

import torch

from pipelines.training.phase_trainer import PhaseTrainer
from pipelines.training.task import OptimizedPhase
from tests.pipelines.training.toy import OPTIMIZER, QUICK, Regression, examples


def noise(seed, step, rank, number):
    """What a phase draws in a step."""
    drawn = []

    class Noisy(Regression):
        def forward(self, batch, step):
            drawn.append(torch.rand(1).item())
            return super().forward(batch, step)

    processes = SimpleNamespace(device=torch.device("cpu"), process_index=rank, autocast=nullcontext)
    trainer = PhaseTrainer(OptimizedPhase(Noisy(), OPTIMIZER), number, QUICK, seed, processes)  # type: ignore[arg-type]
    trainer.compute_gradients([examples(0, 2)], step)
    return drawn[0]


def test_noise_differs_between_seeds_steps_processes_and_phases():
    """With the same dropout on every process, a larger batch would see no more of it."""
    places = list(product((0, 1), repeat=4))
    drawn = [noise(*place) for place in places]
    assert len(set(drawn)) == len(places)
    assert drawn == [noise(*place) for place in places]
