"""Errors of the machine (files, memory, limits) as one message for the user."""

import errno
import os
import re
import sys

CAUSES = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "the operation is not permitted",
    errno.EROFS: "the file system is read-only",
    errno.EISDIR: "is a folder; expected a file",
    errno.ENOTDIR: "lies under a file; expected a folder there",
    errno.ENOENT: "no such file or folder",
    errno.EMFILE: "too many files are open in this process; raise the limit (ulimit -n) or lower the number of workers",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.ENOMEM: "the machine is out of memory",
    errno.EFBIG: "the file is larger than the file system or the limit of the process allows",
    errno.ELOOP: "too many symbolic links follow one another",
}

# What torch and other libraries raise as a plain RuntimeError when memory or a file fails them.
OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator|can't allocate memory|not enough memory|CUDA out of memory|bad_alloc")
TOO_LARGE = re.compile(
    r"multiplication overflow|calculation overflowed|[Ii]nvalid shape dimension|Overflow when unpacking|"
    r"value cannot be converted to type|dimensions? .{0,20}too large|maximum supported dimension"
)
WRITE_FAILED = re.compile(r"PytorchStreamWriter failed|inline_container|iostream error|unexpected pos")
OS_ERROR = re.compile(r"os error (\d+)")  # how the safetensors library spells an errno

MEMORY_ADVICE = "lower the batch size, the image size or the width of the model"


def machine_error(error: BaseException) -> str | None:
    """What `error` means to a user, or None where it is no failure of the machine (a defect of the program, say)."""
    torch = sys.modules.get("torch")
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return f"out of memory ({_first_line(error) or 'no more can be allocated'}); {MEMORY_ADVICE}"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply"
    if isinstance(error, OverflowError):
        return f"a number is too large ({_first_line(error)})"
    if isinstance(error, OSError):
        return _os_error(error)
    return _library_error(error)


def _os_error(error: OSError) -> str:
    cause = CAUSES.get(error.errno or 0) or error.strerror or _first_line(error) or type(error).__name__
    names = [os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, (str, os.PathLike))]
    return f"{' -> '.join(map(str, names))}: {cause}" if names else cause


def _library_error(error: BaseException) -> str | None:
    text = str(error)
    if (found := OS_ERROR.search(text)) and type(error).__name__ == "SafetensorError":
        return CAUSES.get(int(found[1])) or _first_line(error)
    if not isinstance(error, (RuntimeError, ValueError, TypeError)):
        return None
    if OUT_OF_MEMORY.search(text):
        return f"out of memory ({_first_line(error)}); {MEMORY_ADVICE}"
    if TOO_LARGE.search(text):
        return f"a number is too large for this machine ({_first_line(error)}); {MEMORY_ADVICE}"
    if WRITE_FAILED.search(text):
        return f"a file could not be written, the disk may be full ({_first_line(error)})"
    return None


def _first_line(error: BaseException) -> str:
    """The first line of a message, without the source position that torch puts in front."""
    line = next(iter(str(error).strip().splitlines()), "")
    line = re.sub(r"^\[enforce fail at [^\]]*\]\s*\S*\.?\s*", "", line).strip(" .")
    return line if len(line) <= 200 else f"{line[:199]}…"
