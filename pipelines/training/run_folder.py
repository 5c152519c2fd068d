"""The folder that a recipe writes: what stands where, and when it may be continued."""

import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from pipelines.base.atomic_files import sync, write_json, write_text
from pipelines.base.documents import read_yaml
from pipelines.base.errors import UserError
from pipelines.base.recipe_files import dump, flatten_keys
from pipelines.base.redaction import redact
from pipelines.data import RESOURCES

# These change how a run is watched or fed, never what it computes.
KEYS_IGNORED_ON_RESUME = (
    "training.log_every",
    "training.save_every",
    "training.keep_states",
    "training.trackers",
    *(f"data.{name}" for name in RESOURCES),
    "output",
)


class RunFolder:
    """`recipe.yaml`, `metrics.jsonl`, `curves.png`, `pictures/`, `best/`, `last/`, `state/`; `done.json` at the end."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def finished(self) -> bool:
        return (self.path / "done.json").is_file()

    def open(self, recipe: BaseModel, overwrite: bool) -> None:
        """Claim the folder for `recipe`: a new one, the same one to be continued, or one that has not saved anything.

        Raises:
            UserError: another recipe wrote this folder and `overwrite` is off; names the keys that differ.
        """
        written = self.path / "recipe.yaml"
        if overwrite and written.is_file():
            shutil.rmtree(self.path)
        if written.is_file() and (self.finished or self.states()):
            old = flatten_keys(read_yaml(written))
            new = flatten_keys(redact(recipe.model_dump(mode="json")))
            differing = [
                f"{key}: the run has {old.get(key)!r}, this recipe has {new.get(key)!r}"
                for key in sorted(old.keys() | new.keys())
                if old.get(key) != new.get(key) and not key.startswith(KEYS_IGNORED_ON_RESUME)
            ]
            if differing:
                raise UserError(
                    f"{self.path}: holds a run of another recipe. " + "; ".join(differing[:5]) + ". "
                    "Choose another `output`, or start over with --overwrite"
                )
        elif not written.is_file() and self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(
                f"{self.path}: is not empty and not a run of smalti (no recipe.yaml); choose another `output`"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(written, dump(recipe))

    def finish(self, summary: dict[str, Any]) -> None:
        write_json(self.path / "done.json", summary)

    def states(self) -> list[Path]:
        """Complete resume states, oldest first."""
        return sorted((self.path / "state").glob("step-*"))

    def save_state(self, step: int, state: dict[str, Any], keep: int) -> None:
        """Write the state of `step`, then drop all but the newest `keep`."""
        folder = self.path / "state"
        folder.mkdir(parents=True, exist_ok=True)
        target, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        torch.save(state, temporary / "state.pt")
        sync(temporary / "state.pt")
        sync(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        sync(folder)
        for old in self.states()[:-keep]:
            shutil.rmtree(old)

    def load_state(self) -> dict[str, Any] | None:
        """The newest resume state on the CPU, or None at the very start."""
        states = self.states()
        if not states:
            return None
        try:
            return torch.load(states[-1] / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(
                f"{states[-1] / 'state.pt'}: cannot be read ({error}); remove that folder to resume from an older state"
            ) from error
