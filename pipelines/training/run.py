"""One training run in its folder: check, claim, train. A finished run is left as it is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel

from pipelines.base import distributed
from pipelines.base.first_process import first_process
from pipelines.base.process_store import wait_for_all
from pipelines.base.progress import say
from pipelines.training.config import TrainingConfig
from pipelines.training.loop import TrainingLoop, check_batch_size
from pipelines.training.metrics_log import check_trackers
from pipelines.training.run_folder import RunFolder
from pipelines.training.task import TrainingTask


class RunRecipe(Protocol):
    """What every recipe of a training run says."""

    @property
    def output(self) -> Path: ...
    @property
    def seed(self) -> int: ...
    @property
    def training(self) -> TrainingConfig: ...


def train_run(
    recipe: RunRecipe,
    digest_inputs: Callable[[], Mapping[str, str]],
    build_task: Callable[[], TrainingTask],
    overwrite: bool = False,
) -> RunFolder:
    """Train what `build_task` makes of a recipe, or continue; a finished run is left as it is.

    Args:
        digest_inputs: digests of what is trained from and the recipe only points to; called on the first process.
        build_task: opens the data and makes the model. It is called before anything in the folder is touched.

    Raises:
        UserError: the output folder holds another run, or the recipe does not fit its data.
    """
    assert isinstance(recipe, BaseModel)
    config, folder = recipe.training, RunFolder(recipe.output)
    check_trackers(config.trackers)
    accelerator = distributed.start(config.precision, config.trackers, folder.path / "trackers")
    check_batch_size(config, accelerator.num_processes)
    with first_process(accelerator) as first:
        inputs = digest_inputs() if first else {}
        if first:
            folder.check(recipe, inputs, overwrite)
    if folder.finished and not overwrite:
        if accelerator.is_main_process:
            say(f"{folder.path}: finished; nothing to do (--overwrite starts over)")
        return folder
    with first_process(accelerator):  # so that a data set is downloaded once
        torch.manual_seed(recipe.seed)  # the initial weights
        task = build_task()
    wait_for_all(accelerator)  # the loop begins with a collective, which has a timeout
    with folder.begin(recipe, inputs, overwrite, accelerator):
        if config.trackers:
            accelerator.init_trackers("smalti")
        TrainingLoop(task, config, recipe.seed, folder, accelerator).run()
        for tracker in accelerator.trackers:  # end_training would end the process group too, which a chain still needs
            tracker.finish()
    return folder
