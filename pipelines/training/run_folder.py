"""The folder of a training run: what it holds, and which recipe may continue it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from pipelines.base.atomic_files import replacing, write_json, write_text
from pipelines.base.documents import read_json_if_valid, read_yaml
from pipelines.base.errors import UserError
from pipelines.base.first_process import Processes, first_process
from pipelines.base.machine_errors import machine_error
from pipelines.base.output_folder import OutputFolder, OutputKind
from pipelines.base.recipe_files import dump, flatten_keys
from pipelines.base.redaction import redact
from pipelines.data import RESOURCES
from pipelines.tokens.encoding_spec import LOCATIONS
from pipelines.training.config import BOOKKEEPING

RUN = OutputKind(
    name="a training run",
    command="smalti train",
    owned=(
        "done.json",
        "health.png",  # of `smalti inspect`
        "state/step-*.pt",
        "inputs.json",
        "metrics.jsonl",
        "curves.png",
        "failure.json",
        "changes.jsonl",
        "figures/*.png",
        *(
            f"{folder}/{name}"
            for folder in ("best", "last")
            for name in ("config.json", "model.safetensors", "README.md", "captions.json")
        ),
        "trackers/*/events.out.tfevents.*",
        "trackers/*/*/events.out.tfevents.*",
        "trackers/*/hparams.yml",
        "recipe.yaml",
    ),
    key="output",
)

# These change how a run is watched, fed or stored, never what it computes. Folders may be moved: what a run was trained
# from is compared by digest, in inputs.json.
KEYS_IGNORED_ON_RESUME = (
    "output",
    "tokens",
    *(f"data.{name}" for name in RESOURCES),
    *(f"training.{name}" for name in BOOKKEEPING),
)

# Where images lie. Ignored where the images are compared by digest.
KEYS_OF_LOCATIONS = tuple(f"data.source.{name}" for name in LOCATIONS)

# What a person would change after the loss stopped being finite. Its last good state may then be continued.
KEYS_FREE_AFTER_FAILURE = (
    "training.optimizer.learning_rate",
    "training.optimizer.max_grad_norm",
    "training.optimizer.warmup",
    "training.precision",
)


class RunFolder:
    """`recipe.yaml`, `inputs.json`, `metrics.jsonl`, `curves.png`, `figures/`, `best/`, `last/`, `state/`; `done.json`
    at the end. After a numeric failure `failure.json`; `changes.jsonl` lists options that were changed because of it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._output = OutputFolder(path, RUN)

    @property
    def finished(self) -> bool:
        return (self.path / "done.json").is_file()

    def check(self, recipe: BaseModel, inputs: Mapping[str, str], overwrite: bool = False) -> None:
        """Refuse a folder that this run may not continue. Nothing is written.

        `inputs` are digests of what the run is trained from and the recipe only points to.

        Raises:
            UserError: the folder cannot be written, holds something else, or a run of another recipe or other inputs
                while `overwrite` is off; names what differs.
        """
        self._output.check(overwrite)
        if not overwrite:
            self._refuse_another_run(recipe, inputs)

    def _refuse_another_run(self, recipe: BaseModel, inputs: Mapping[str, str]) -> None:
        if not (self.finished or self.states()):
            return
        problems = self._problems(recipe, inputs, KEYS_FREE_AFTER_FAILURE if self.failure else ())
        if problems:
            raise UserError(
                f"{self.path}: holds a run of another recipe. {'; '.join(problems[:5])}. "
                "Choose another `output`, or start over with --overwrite"
            )

    def _clear_abandoned_run(self, recipe: BaseModel, inputs: Mapping[str, str]) -> None:
        """Without a state a run is not continued. What another recipe has left must not pass for this one's."""
        if self.finished or self.states() or not (self.path / "recipe.yaml").is_file():
            return
        with contextlib.suppress(UserError):  # a recipe that cannot be read is another one
            if not self._problems(recipe, inputs):
                return
        self._output.clear()

    def _problems(self, recipe: BaseModel, inputs: Mapping[str, str], free: tuple[str, ...] = ()) -> list[str]:
        """Why the run in the folder is another one, apart from the keys that are `free`."""
        stored = read_json_if_valid(self.path / "inputs.json") or {}
        ignored = KEYS_IGNORED_ON_RESUME + free + (KEYS_OF_LOCATIONS if stored.keys() & inputs.keys() else ())
        problems = [
            f"{key}: the run has {old!r}, this recipe has {new!r}"
            for key, (old, new) in self._differing(recipe).items()
            if not key.startswith(ignored)
        ]
        return problems + [
            f"{name}: the run was trained from {str(stored[name])[:12]}…, found {digest[:12]}…"
            for name, digest in inputs.items()
            if name in stored and stored[name] != digest
        ]

    @contextmanager
    def begin(
        self, recipe: BaseModel, inputs: Mapping[str, str], overwrite: bool, processes: Processes
    ) -> Iterator[None]:
        """Hold the folder while its run is trained. All processes enter and leave together.

        Raises:
            UserError: as `check`; or another command works in the folder.
        """
        with self._output.begin(overwrite, processes):
            with first_process(processes) as first:
                if first:
                    self._refuse_another_run(recipe, inputs)
                    self._clear_abandoned_run(recipe, inputs)
                    self._record_changes(recipe)
                    write_text(self.path / "recipe.yaml", dump(recipe))
                    write_json(self.path / "inputs.json", dict(inputs))
            yield

    def _differing(self, recipe: BaseModel) -> dict[str, tuple[Any, Any]]:
        """What the recipe of the run has, and what this one has, by key."""
        stored = read_yaml(self.path / "recipe.yaml")
        with contextlib.suppress(ValidationError):  # options that are newer than the run get their defaults
            stored = type(recipe).model_validate(stored).model_dump(mode="json")
        old, new = flatten_keys(redact(stored)), flatten_keys(redact(recipe.model_dump(mode="json")))
        keys = sorted(old.keys() | new.keys())
        return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}

    def _record_changes(self, recipe: BaseModel) -> None:
        """Say in `changes.jsonl` from which step on a run that failed is trained with other options."""
        if self.failure is None or not self.states():
            return
        changes = [
            {"step": self.newest_step(), "key": key, "from": old, "to": new}
            for key, (old, new) in self._differing(recipe).items()
            if key.startswith(KEYS_FREE_AFTER_FAILURE)
        ]
        with (self.path / "changes.jsonl").open("a") as file:
            file.writelines(json.dumps(change) + "\n" for change in changes)

    @property
    def failure(self) -> dict[str, Any] | None:
        """What `record_failure` has written, unless the run has got past it."""
        found = read_json_if_valid(self.path / "failure.json") or {}
        step = found.get("step")
        return found if isinstance(step, int) and step >= self.newest_step() else None

    def record_failure(self, step: int, message: str) -> None:
        """The loss stopped being finite at `step`. States are older, and may be continued with other options."""
        write_json(self.path / "failure.json", {"step": step, "message": message})

    def finish(self, summary: dict[str, Any]) -> None:
        """Written last: the run is complete."""
        write_json(self.path / "done.json", summary)

    def states(self) -> list[Path]:
        """Complete resume states, oldest first."""
        found = (self.path / "state").glob("step-*.pt")
        return sorted((path for path in found if _step_name(path).isdecimal()), key=lambda path: int(_step_name(path)))

    def newest_step(self) -> int:
        """The step of the newest state, 0 where there is none."""
        return max((int(_step_name(path)) for path in self.states()), default=0)

    def save_state(self, step: int, state: dict[str, Any], keep_states: int) -> None:
        """Write the state of `step`, then drop all but the newest `keep_states`."""
        with replacing(self._state(step)) as temporary:
            torch.save(state, temporary)
        for old in self.states()[:-keep_states]:
            old.unlink()

    def load_state(self, step: int, mapped: bool = False) -> dict[str, Any]:
        """The state of `step` on the CPU; `mapped` reads from the file what is asked for, when it is asked for.

        Raises:
            UserError: the file is damaged.
        """
        path = self._state(step)
        if not path.is_file():  # reading a pipe would never end
            raise UserError(f"{path}: is not a file; remove it to resume from an older state")
        with self.refuse_damaged_state(step):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)

    @contextmanager
    def refuse_damaged_state(self, step: int) -> Iterator[None]:
        """Raises UserError, which names the file, where the state of `step` cannot be read or does not fit the run."""
        try:
            yield
        except Exception as error:
            if machine_error(error) is not None:  # too little memory, say: the file may be sound
                raise
            raise UserError(  # torch's own words would advise to run whatever code is in the file
                f"{self._state(step)}: cannot be read as a state of this run ({type(error).__name__}); remove it to "
                "resume from an older state"
            ) from error

    def _state(self, step: int) -> Path:
        return self.path / "state" / f"step-{step:08d}.pt"


def _step_name(state: Path) -> str:
    return state.stem.removeprefix("step-")
