"""A run in its folder: nothing is touched before the data is open, and a finished run is left alone."""

import pytest

from pipelines.base.errors import UserError
from pipelines.training.run import train_run
from pipelines.training.run_folder import RunFolder
from tests.pipelines.training.toy import QUICK, Recipe, ToyTask, weights

CONFIG = QUICK.model_copy(update={"steps": 3})


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("pipelines.training.loop.draw_curves", lambda metrics, figure: None)


def recipe(path, **training):
    return Recipe(output=path, training=CONFIG.model_copy(update=training))


def trained(path, overwrite=False, **training):
    wanted = recipe(path, **training)
    return train_run(wanted, dict, lambda: ToyTask(wanted.training), overwrite)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".smalti.json"}


def test_a_finished_run_is_left_alone(tmp_path, capsys):
    folder = trained(tmp_path / "run")
    before = content(folder.path)
    train_run(recipe(tmp_path / "run"), dict, lambda: pytest.fail("no model is made"))
    assert content(folder.path) == before
    assert "finished; nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("overwrite", [False, True])
def test_data_that_cannot_be_opened_leave_the_folder_as_it_was(tmp_path, overwrite):
    folder = trained(tmp_path / "run")
    (folder.path / "done.json").unlink()
    before = content(folder.path)

    def missing():
        raise UserError("data: no such file")

    with pytest.raises(UserError, match="no such file"):
        train_run(recipe(tmp_path / "run"), dict, missing, overwrite)
    assert content(folder.path) == before


def test_data_that_cannot_be_opened_make_no_folder(tmp_path):
    def missing():
        raise UserError("data: no such file")

    with pytest.raises(UserError, match="no such file"):
        train_run(recipe(tmp_path / "new"), dict, missing)
    assert not (tmp_path / "new").exists()


def test_overwrite_starts_over(tmp_path):
    first = weights(trained(tmp_path / "run"))["toy"]["layers.0.weight"]
    again = weights(trained(tmp_path / "run", overwrite=True, steps=4))["toy"]["layers.0.weight"]
    assert not first.equal(again)


def test_a_tracker_gets_the_figures_of_a_run_in_a_new_folder(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra smalti[tensorboard] is not installed")
    folder = trained(tmp_path / "run", trackers=("tensorboard",))
    assert any(b"train/loss" in path.read_bytes() for path in folder.path.rglob("events.out.tfevents.*"))
    trained(tmp_path / "run", overwrite=True, steps=2)
    assert not list(folder.path.rglob("events.out.tfevents.*"))


def test_nobody_enters_the_loop_before_all_have_opened_their_data(tmp_path, monkeypatch):
    """A collective has a timeout, and scanning a large data set may take longer."""
    events = []
    begin = RunFolder.begin
    monkeypatch.setattr("pipelines.training.run.wait_for_all", lambda accelerator: events.append("wait"))
    monkeypatch.setattr(RunFolder, "begin", lambda *arguments: events.append("begin") or begin(*arguments))
    whole = recipe(tmp_path / "run")
    train_run(whole, dict, lambda: events.append("open") or ToyTask(whole.training))
    assert events == ["open", "wait", "begin"]
