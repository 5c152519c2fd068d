"""Nothing of the user's is deleted, two commands never write one folder, and a refusal changes nothing."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.base.errors import UserError
from pipelines.base.output_folder import MARKER, OutputFolder, OutputKind, check_output_file

ROOT = Path(__file__).parents[3]
DRAWINGS = OutputKind("drawings", "smalti draw", ("request.json", "images/*.png", "deep/er/*.txt", "parts/part-*/a"))
OTHERS = OutputKind("other things", "smalti other", ("*.txt",))


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def written(tmp_path, *names):
    """A folder of drawings with these files of its own."""
    folder = OutputFolder(tmp_path / "out", DRAWINGS)
    with folder.begin():
        fill(folder.path, *names)
    return folder


def test_a_check_writes_nothing_and_a_beginning_marks_the_folder(tmp_path):
    folder = OutputFolder(tmp_path / "a" / "b", DRAWINGS)
    folder.check()
    assert not (tmp_path / "a").exists()
    with folder.begin():
        assert files(folder.path) == {MARKER}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "request.json", "recipe.yaml", "images/cat.png", ".hidden"])
def test_a_folder_without_our_marker_is_never_claimed(tmp_path, name, overwrite):
    fill(tmp_path, name)
    folder = OutputFolder(tmp_path, DRAWINGS)
    for attempt in (lambda: folder.check(overwrite), lambda: folder.begin(overwrite).__enter__()):
        with pytest.raises(UserError, match="not empty"):
            attempt()
    assert files(tmp_path) == {name}


def test_overwriting_deletes_our_names_and_no_other(tmp_path):
    ours = ("request.json", "images/1.png", "deep/er/a.txt", "parts/part-1/a")
    theirs = ("thesis.tex", "images/notes.txt", "deep/b.txt", "parts/part-1/b")
    folder = written(tmp_path, *ours, *theirs)
    with folder.begin(overwrite=True):
        assert files(folder.path) == {MARKER, *theirs}
        assert not (folder.path / "deep" / "er").exists()


def test_continuing_deletes_only_half_written_files(tmp_path):
    kept = ("request.json", "images/1.png", "notes.txt", "elsewhere/.a.1.partial")
    folder = written(tmp_path, *kept, "images/.2.17.partial.png", ".request.17.partial.json")
    with folder.begin():
        assert files(folder.path) == {MARKER, *kept}


def test_links_are_not_followed(tmp_path):
    fill(tmp_path / "photos", "cat.png", ".x.partial.png")
    folder = written(tmp_path)
    (folder.path / "images").symlink_to(tmp_path / "photos")
    (folder.path / "request.json").symlink_to(tmp_path / "photos" / "cat.png")
    with folder.begin(overwrite=True):
        assert files(tmp_path / "photos") == {"cat.png", ".x.partial.png"}
        assert not (folder.path / "request.json").is_symlink()


def test_another_kind_of_output_is_refused(tmp_path):
    written(tmp_path, "request.json")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds drawings, not other things"):
            OutputFolder(tmp_path / "out", OTHERS).check(overwrite)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": "x", "kind": "drawings"}', '{"format": 1}'])
def test_a_damaged_marker_claims_nothing_that_may_be_the_users(tmp_path, content):
    folder = written(tmp_path, "request.json")
    (folder.path / MARKER).write_text(content)
    with pytest.raises(UserError, match="damaged"):
        folder.check(overwrite=True)
    (folder.path / "request.json").unlink()
    folder.check()


def test_a_second_command_is_told_the_first_ones_process(tmp_path):
    folder = written(tmp_path)
    code = (
        "from pipelines.base.output_folder import *\nimport time\n"
        f"kind = OutputKind('drawings', 'smalti draw', ())\nwith OutputFolder({str(folder.path)!r}, kind).begin():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    for attempt in (folder.check, lambda: folder.begin(overwrite=True).__enter__()):
        with pytest.raises(UserError, match=f"process {process.pid}"):
            attempt()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with folder.begin():
        pass


def test_those_who_check_at_once_do_not_refuse_each_other(tmp_path):
    """As the processes of one command do; a lock belongs to an opened file, so threads show the same."""
    folder = written(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: folder.check(), range(1000)))


def test_a_worker_that_outlives_its_parent_does_not_keep_the_lock(tmp_path):
    folder = written(tmp_path)
    with folder.begin():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # until the child has begun to run
        with contextlib.suppress(UserError):
            folder.check()
            break
    folder.check()
    child.kill()
    child.join()


def test_the_lock_ends_with_an_error(tmp_path):
    folder = OutputFolder(tmp_path / "out", DRAWINGS)
    with pytest.raises(ZeroDivisionError), folder.begin():
        raise ZeroDivisionError
    folder.check()
    assert str(os.getpid()) not in (folder.path / MARKER).read_text()


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below", "link", "x" * 300, "nul\0byte"])
def test_where_no_folder_can_be_is_one_message(tmp_path, place):
    fill(tmp_path, "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    folder = OutputFolder(tmp_path / place, DRAWINGS)
    for attempt in (folder.check, lambda: folder.begin().__enter__()):
        with pytest.raises(UserError):
            attempt()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(UserError, match="permission"):
        OutputFolder(tmp_path / "shut" / "out", DRAWINGS).check()


@pytest.mark.parametrize("name", ["folder", "folder.png", "a.jpg", "a", "file/a.png"])
def test_an_output_file_has_the_right_suffix_and_a_folder(tmp_path, name):
    fill(tmp_path, "file")
    for folder in ("folder", "folder.png"):
        (tmp_path / folder).mkdir()
    with pytest.raises(UserError):
        check_output_file(tmp_path / name, ".png")
    check_output_file(tmp_path / "new" / "a.png", ".png")
