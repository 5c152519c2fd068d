"""Files are whole or absent, and as readable as any other file of the user."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from pipelines.base.atomic_files import replacing, write_text


@pytest.fixture(params=[0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_mode_of_a_file_follows_the_umask(tmp_path, umask):
    write_text(tmp_path / "a.txt", "a")
    with replacing(tmp_path / "b.safetensors") as temporary:
        save_file({"x": torch.zeros(1)}, temporary)
    for name in ("a.txt", "b.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]
