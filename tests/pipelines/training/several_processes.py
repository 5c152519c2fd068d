"""Run by test_processes.py in each of several processes: what must hold between them. The first failure ends all."""

import contextlib
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from pipelines.base import distributed
from pipelines.training import loop
from pipelines.training.collective import Collective
from tests.pipelines.training.toy import OPTIMIZER, QUICK, Regression, ToyTask, equal, run, weights


class Cut(Exception):
    pass


def cut_at(stop: int):
    def broken(step, batch):
        if step == stop:
            raise Cut
        return batch

    return broken


def resumed_equals_uninterrupted(root: Path, accelerator: Accelerator) -> None:
    """Cut at any step, with one part and with several, in both precisions of a CPU."""
    for precision, parts, stops in (
        ("fp32", 1, (1, 4, 9, 13)),
        ("fp32", 2, (5, 8)),
        ("bf16", 1, (3, 17)),
        ("bf16", 2, (7,)),
    ):
        update = {"precision": precision, "gradient_accumulation_steps": parts}
        config = QUICK.model_copy(update=update)
        name = f"{precision}-{parts}"
        whole = run(root / f"{name}-whole", ToyTask(config))
        for stop in stops:
            folder = root / f"{name}-{stop}"
            with contextlib.suppress(Cut):
                run(folder, ToyTask(config, broken=cut_at(stop)))
            resumed = run(folder, ToyTask(config))
            accelerator.wait_for_everyone()
            assert equal(weights(whole), weights(resumed)), f"{name}, cut at step {stop}"
            assert equal(weights(whole, "best"), weights(resumed, "best")), f"best of {name}, cut at step {stop}"


def all_stop_at_the_same_step(root: Path, accelerator: Accelerator) -> None:
    """Early, when validation brings no gain, and also after a cut."""
    hasty = OPTIMIZER.model_copy(update={"learning_rate": 0.5})
    config = QUICK.model_copy(update={"steps": 400, "validate_every": 2, "patience": 3, "optimizer": hasty})
    whole = run(root / "patient", ToyTask(config))
    steps = json.loads((whole.path / "done.json").read_text())["steps"]
    assert steps < 400
    with contextlib.suppress(Cut):
        run(root / "patient-cut", ToyTask(config, broken=cut_at(steps - 1)))
    resumed = run(root / "patient-cut", ToyTask(config))
    assert equal(weights(whole), weights(resumed)) and equal(weights(whole, "best"), weights(resumed, "best"))
    assert (whole.path / "done.json").read_text() == (resumed.path / "done.json").read_text()


def gradients_are_means(root: Path, accelerator: Accelerator) -> None:
    """Processes with their shares of a batch have the gradient of the whole batch, also where one got none."""
    world, rank = accelerator.num_processes, accelerator.process_index
    parameters = [torch.nn.Parameter(torch.ones(size, device=accelerator.device)) for size in (2, 3)]
    loss = (rank + 1) * parameters[0].sum()
    if rank == 0:
        loss = loss + parameters[1].sum()
    loss.backward()
    Collective(accelerator).average_gradients(parameters)
    for parameter, expected in zip(parameters, ((world + 1) / 2, 1 / world), strict=True):
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, expected))


def validation_is_that_of_one_process(root: Path, accelerator: Accelerator) -> None:
    """To the last bit, although 67 rows are no multiple of anything."""

    class Alone:
        rank, world = 0, 1
        gather = staticmethod(lambda value: [value])

    torch.manual_seed(0)
    task, models = ToyTask(), {"toy": Regression().model.eval()}
    assert task.validate(models, Collective(accelerator)) == task.validate(models, Alone())


def every_process_begins_with_the_weights_of_the_first(root: Path, accelerator: Accelerator) -> None:
    torch.manual_seed(accelerator.process_index)
    task = ToyTask()
    for optimized in task.phases.values():
        for parameter in optimized.phase.trained_parameters().values():
            torch.nn.init.normal_(parameter)
    training = loop.TrainingLoop(task, QUICK, 0, loop.RunFolder(root / "empty"), accelerator)
    training.resume()
    mine = torch.cat([tensor.flatten() for tensor in training.trainers["toy"].tensors()]).cpu()
    assert all(torch.equal(mine, other) for other in training.collective.gather(mine))


if __name__ == "__main__":
    loop.draw_curves = lambda metrics, figure: None
    accelerator = distributed.start()
    for check in (
        gradients_are_means,
        validation_is_that_of_one_process,
        every_process_begins_with_the_weights_of_the_first,
        all_stop_at_the_same_step,
        resumed_equals_uninterrupted,
    ):
        check(Path(sys.argv[1]), accelerator)
        if accelerator.is_main_process:
            print(f"passed: {check.__name__}")
    torch.distributed.destroy_process_group()
