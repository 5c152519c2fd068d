"""The folder that a command writes: one way to claim it, for all commands.

A claimed folder holds a marker of ours, `.smalti.json`, which names the kind of output. While a command works, the
marker is locked (flock) and names the process; the operating system drops the lock when the process ends, however it
ends. Only names that the kind owns are ever deleted, and nothing is before the new request has been validated:

    folder = OutputFolder(path, SAMPLES)
    folder.check(overwrite)                     # early; writes nothing
    …                                           # open the data, load the models: any mistake leaves the folder as it is
    with folder.begin(overwrite, accelerator):  # lock, marker, `overwrite` deletes what is ours
        …
"""

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.base.documents import read_json_if_valid
from pipelines.base.errors import UserError
from pipelines.base.first_process import first_process
from pipelines.base.process_store import Processes

MARKER = ".smalti.json"
FORMAT = "smalti-output/1"


@dataclass(frozen=True)
class OutputKind:
    """What a command writes.

    name: the kind, as the marker and messages call it ("samples").
    command: the command that writes it ("smalti sample").
    owned: every name that the command writes, as glob patterns relative to the folder ("images/*.png"). They are
        deleted in this order: first what says that the output is complete.
    key: how the user names the folder ("--output"; a recipe's "output").
    parts: folders inside it that other commands write; they may be there before this command has been called.
    """

    name: str
    command: str
    owned: tuple[str, ...]
    key: str = "--output"
    parts: tuple[str, ...] = ()


class OutputFolder:
    """An output folder of one kind. `check` and `begin` raise UserError where the folder cannot be this kind's."""

    def __init__(self, path: str | Path, kind: OutputKind):
        self.path, self.kind = Path(path), kind

    def check(self, overwrite: bool = False) -> None:
        """Refuse a folder that `begin` would refuse. Nothing is written.

        Raises:
            UserError: a file stands at or above the path, it cannot be written, it holds something else, or another
                command is at work in it.
        """
        check_writable(self.path)
        self._refuse_foreign(overwrite)
        if (self.path / MARKER).is_file():
            with contextlib.closing(_Lock(self.path / MARKER)) as lock:
                self._refuse_locked(lock, shared=True)  # all processes of a command may check at once

    @contextmanager
    def begin(self, overwrite: bool = False, processes: Processes | None = None) -> Iterator[None]:
        """Hold the folder while a command works. The first process holds it for all; each enters and leaves together.

        Raises:
            UserError: as `check`, on every process.
        """
        with contextlib.ExitStack() as held:
            with first_process(processes) as first:
                if first:
                    check_writable(self.path)
                    self._refuse_foreign(overwrite)
                    self.path.mkdir(parents=True, exist_ok=True)
                    lock = _Lock(self.path / MARKER)
                    held.callback(lock.close)
                    self._refuse_locked(lock)
                    lock.write({"format": FORMAT, "kind": self.kind.name, "pid": os.getpid()})
                    held.callback(lock.write, {"format": FORMAT, "kind": self.kind.name})
                    self._delete_owned(leftovers_only=not overwrite)
            yield

    def clear(self) -> None:
        """Delete our own files. Only for who holds the folder."""
        self._delete_owned(leftovers_only=False)

    def _refuse_foreign(self, overwrite: bool) -> None:
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return
        if MARKER not in names:
            parts = {name for name in self.kind.parts if (self.path / name / MARKER).is_file()}
            if names := [name for name in names if name not in parts]:
                shown = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
                more = " --overwrite deletes nothing that smalti did not write." if overwrite else ""
                raise UserError(
                    f"{self.path}: is not empty ({shown}) and was not written by `{self.kind.command}`.{more} Choose "
                    f"another {self.kind.key}"
                )
            return
        found = _read_marker(self.path / MARKER).get("kind")
        if found is None and set(names) != {MARKER}:
            raise UserError(
                f"{self.path / MARKER}: is damaged, so it is unknown what the folder holds. Choose another "
                f"{self.kind.key}, or remove that file if the folder's other files are no longer needed"
            )
        if found not in (None, self.kind.name):
            raise UserError(
                f"{self.path}: holds {found}, not {self.kind.name} of `{self.kind.command}`. Choose another "
                f"{self.kind.key}"
            )

    def _refuse_locked(self, lock: "_Lock", shared: bool = False) -> None:
        if not lock.acquire(shared):
            pid = _read_marker(self.path / MARKER).get("pid", "unknown")
            raise UserError(
                f"{self.path}: another smalti command (process {pid}) is writing this folder. Wait for it or stop it, "
                f"or choose another {self.kind.key}"
            )

    def _delete_owned(self, leftovers_only: bool) -> None:
        """Delete our own files, or only what a killed command left half-written. Links are never followed."""
        for pattern in self.kind.owned:
            place = os.path.dirname(pattern)
            for path in self.path.glob(os.path.join(place, ".*.partial*")):
                self._delete_file(path)
            for path in self.path.glob(pattern) if not leftovers_only else ():
                self._delete_file(path)
        places = {parent for pattern in self.kind.owned for parent in Path(pattern).parents} - {Path(".")}
        for place in sorted(places, key=lambda found: -len(found.parts)):
            for folder in self.path.glob(str(place)) if not leftovers_only else ():
                with contextlib.suppress(OSError):  # not empty: something in it is not ours
                    folder.rmdir()

    def _delete_file(self, path: Path) -> None:
        inside = path.relative_to(self.path).parents
        if any((self.path / parent).is_symlink() for parent in inside if parent != Path(".")):
            return
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a folder that cannot be made or written.

    Raises:
        UserError: a file stands at the path or above it, or permissions are missing.
    """
    for candidate in (path, *path.parents):
        try:
            status = os.stat(candidate)
        except FileNotFoundError:
            if candidate.is_symlink():
                raise UserError(f"{path}: {candidate} is a link to nowhere; expected a folder to write") from None
            continue
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            if getattr(error, "errno", None) == errno.ENOTDIR:
                continue  # the file itself is met further up
            raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
        if not stat.S_ISDIR(status.st_mode):
            message = "is a file" if candidate == path else f"lies under {candidate}, which is a file"
            raise UserError(f"{path}: {message}; expected a folder to write")
        if not os.access(candidate, os.W_OK | os.X_OK):
            raise UserError(f"{path}: cannot be written (no permission to write in {candidate})")
        return


def check_output_file(path: Path, suffix: str) -> None:
    """Refuse a path where no file with this suffix can be written.

    Raises:
        UserError: another suffix, a folder stands there, or its folder cannot be written.
    """
    if path.suffix.lower() != suffix:
        raise UserError(f"{path}: found the suffix {path.suffix!r}, expected a file name that ends in {suffix}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected the name of a {suffix} file")
    check_writable(path.parent)


class _Lock:
    """A lock on a file, which is made if need be. It ends with the process, and no child inherits it."""

    def __init__(self, path: Path):
        self.path, self.held = path, False
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        _open_locks.add(self)

    def acquire(self, shared: bool = False) -> bool:
        """False where another process holds the lock, which only `shared` ones can hold together.

        File systems without locks grant it to everybody.
        """
        try:
            fcntl.flock(self.descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            self.held = True
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
        return True

    def write(self, content: dict[str, Any]) -> None:
        """In place: a new file would not be the one that is locked."""
        text = (json.dumps(content) + "\n").encode()
        os.pwrite(self.descriptor, text, 0)
        os.ftruncate(self.descriptor, len(text))
        os.fsync(self.descriptor)

    def close(self) -> None:
        _open_locks.discard(self)
        os.close(self.descriptor)


_open_locks: set[_Lock] = set()


def _close_in_child() -> None:
    """A forked worker that outlives its killed parent must not keep the lock."""
    for lock in _open_locks:
        with contextlib.suppress(OSError):
            os.close(lock.descriptor)
    _open_locks.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _read_marker(path: Path) -> dict[str, Any]:
    """What a marker says; empty where it is damaged."""
    found = read_json_if_valid(path) or {}
    return found if found.get("format") == FORMAT else {}
