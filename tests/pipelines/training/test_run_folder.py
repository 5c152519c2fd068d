"""Which recipe may continue a run."""

import os
from pathlib import Path

import pytest
import torch

from pipelines.base import distributed
from pipelines.base.atomic_files import write_json
from pipelines.base.errors import UserError
from pipelines.training.loop import TrainingLoop
from pipelines.training.run_folder import RunFolder
from tests.pipelines.training.toy import QUICK, Recipe, ToyTask, run


def begun(path, recipe=None, inputs=None, saved=True):
    folder = RunFolder(path)
    with folder.begin(recipe or Recipe(), inputs or {}, False, distributed.start()):
        if saved:
            folder.save_state(1, {"step": 1}, keep_states=1)
    return folder


def changed(**training):
    return Recipe(training=QUICK.model_copy(update=training))


def test_another_recipe_is_refused_by_the_keys_that_differ(tmp_path):
    folder = begun(tmp_path / "run")
    before = (folder.path / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=r"training.batch_size: the run has 24, this recipe has 16"):
        folder.check(changed(batch_size=16), {})
    assert (folder.path / "recipe.yaml").read_text() == before


def test_options_that_change_no_number_may_change(tmp_path):
    folder = begun(tmp_path / "run")
    folder.check(changed(log_every=7, save_every=9, keep_states=5, trackers=("tensorboard",)), {})


def test_a_run_may_be_moved(tmp_path):
    folder = begun(tmp_path / "run", Recipe(output=tmp_path / "run"))
    folder.path.rename(tmp_path / "moved")
    RunFolder(tmp_path / "moved").check(Recipe(output=tmp_path / "moved"), {})


def test_a_run_that_has_saved_nothing_may_become_another(tmp_path):
    folder = begun(tmp_path / "run", saved=False)
    folder.check(Recipe(name="corrected"), {})


@pytest.mark.parametrize("change", ["recipe", "damaged recipe", "inputs"])
def test_another_run_starts_in_an_empty_folder(tmp_path, change):
    """The best weights of a run that has saved no state are not those of the run that takes its place."""
    folder = begun(tmp_path / "run", inputs={"tokens": "a" * 64}, saved=False)
    left = [folder.path / name for name in ("best/model.safetensors", "figures/a.png", "health.png", "failure.json")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    (folder.path / "notes.txt").write_text("mine")
    begun(folder.path, inputs={"tokens": "a" * 64}, saved=False)
    assert all(path.exists() for path in left)
    if change == "damaged recipe":
        (folder.path / "recipe.yaml").write_text("{")
    recipe = changed(batch_size=48) if change == "recipe" else Recipe()
    begun(folder.path, recipe, {"tokens": ("b" if change == "inputs" else "a") * 64}, saved=False)
    assert not any(path.exists() for path in left)
    assert (folder.path / "notes.txt").exists() and (folder.path / "recipe.yaml").exists()


def test_other_inputs_are_refused_by_digest(tmp_path):
    folder = begun(tmp_path / "run", inputs={"tokens": "a" * 64})
    folder.check(Recipe(), {"tokens": "a" * 64})
    with pytest.raises(UserError, match="tokens: the run was trained from aaaaaaaaaaaa…, found bbbbbbbbbbbb…"):
        folder.check(Recipe(), {"tokens": "b" * 64})


def test_an_option_that_is_newer_than_the_run_has_its_default(tmp_path):
    """A folder stored now still continues after a field with a default has been added to any option."""
    folder = begun(tmp_path / "run")

    class Newer(Recipe):
        added: int = 3

    folder.check(Newer(), {})
    with pytest.raises(UserError, match="added: the run has 3, this recipe has 4"):
        folder.check(Newer(added=4), {})


def test_a_foreign_folder_is_refused_whatever_it_holds(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    (tmp_path / "recipe.yaml").write_text("name: mine")
    with pytest.raises(UserError, match="was not written by `smalti train`"):
        RunFolder(tmp_path).check(Recipe(), {}, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_overwrite_deletes_what_a_run_writes_and_nothing_else(tmp_path):
    folder = begun(tmp_path / "run")
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "best").mkdir()
    (folder.path / "best" / "model.safetensors").write_text("")
    with folder.begin(Recipe(name="another"), {}, True, distributed.start()):
        assert not folder.states() and not (folder.path / "best").exists()
        assert (folder.path / "notes.txt").read_text() == "mine"


def test_only_the_newest_states_are_kept(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (8, 9, 10, 100):
        folder.save_state(step, {"step": step}, keep_states=2)
    assert [path.name for path in folder.states()] == ["step-00000010.pt", "step-00000100.pt"]
    assert folder.newest_step() == 100 and folder.load_state(100)["step"] == 100


def test_a_damaged_state_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_state(3, {"step": 3}, keep_states=2)
    folder.states()[0].write_bytes(b"torn")
    with pytest.raises(UserError, match=r"step-00000003.pt: cannot be read .* remove it to resume from an older state"):
        folder.load_state(3)


@pytest.mark.parametrize("found", [{}, {"step": 3}, [1], {"step": 3, "best": 0, "metrics": {}, "phases": {"toy": {}}}])
def test_a_state_of_something_else_is_named(tmp_path, found):
    run(tmp_path, ToyTask())
    folder = RunFolder(tmp_path)
    torch.save(found, folder.states()[-1])
    with pytest.raises(UserError, match=r"step-\d{8}.pt: cannot be read .* remove it to resume from an older state"):
        TrainingLoop(ToyTask(), QUICK, 0, folder, distributed.start()).resume()


@pytest.mark.parametrize("occupy", [Path.mkdir, os.mkfifo])
def test_what_stands_in_the_place_of_a_state_is_named(tmp_path, occupy):
    folder = RunFolder(tmp_path)
    folder.save_state(3, {"step": 3}, keep_states=2)
    folder.states()[0].unlink()
    occupy(tmp_path / "state" / "step-00000003.pt")
    with pytest.raises(UserError, match=r"step-00000003.pt: is not a file; remove it to resume from an older state"):
        folder.load_state(folder.newest_step())


def test_too_little_memory_for_a_state_does_not_make_it_a_damaged_one(tmp_path):
    with pytest.raises(MemoryError), RunFolder(tmp_path).refuse_damaged_state(3):
        raise MemoryError


def test_a_file_that_only_looks_like_a_state_is_none(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_state(3, {"step": 3}, keep_states=2)
    (tmp_path / "state" / "step-best.pt").write_text("mine")
    assert folder.newest_step() == 3
    folder.save_state(4, {"step": 4}, keep_states=1)
    assert (tmp_path / "state" / "step-best.pt").exists()


@pytest.mark.parametrize("step", [None, "many", [], {}])
def test_a_damaged_note_of_a_failure_is_none(tmp_path, step):
    folder = RunFolder(tmp_path)
    folder.record_failure(3, "the loss is NaN")
    assert folder.failure
    write_json(tmp_path / "failure.json", {"step": step})
    assert folder.failure is None


@pytest.mark.parametrize("digest", [None, 1, []])
def test_a_damaged_digest_of_the_inputs_is_another_one(tmp_path, digest):
    folder = begun(tmp_path / "run", inputs={"tokens": "a" * 64})
    write_json(folder.path / "inputs.json", {"tokens": digest})
    with pytest.raises(UserError, match="tokens: the run was trained from"):
        folder.check(Recipe(), {"tokens": "a" * 64})
