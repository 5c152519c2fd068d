"""Decoding many images at once, by a few threads: PIL and torch work without Python's lock most of the time."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier

import torch
from jaxtyping import UInt8
from torch import Tensor

from pipelines.data.image_files import DECODE_ERRORS, reason
from pipelines.data.preprocess import Preprocess, prepare_image
from pipelines.data.source import Reader

ROWS_PER_TASK = 16  # large enough that handing a task over costs nothing beside it
MOST_THREADS = 8


def decode_images(
    readers: Sequence[Reader], preprocess: Preprocess, threads: int = 0
) -> tuple[UInt8[Tensor, "n c size size"], dict[int, str]]:
    """The prepared images of some rows in their order, as one tensor, and why some could not be decoded.

    Places of such rows hold zeros. `threads`: 0 takes `default_threads()`; 1 is the calling thread.
    """
    shape = (len(readers), preprocess.channels, preprocess.size, preprocess.size)
    images, failures = torch.zeros(shape, dtype=torch.uint8), {}

    def decode_part(start: int) -> None:
        for place in range(start, min(start + ROWS_PER_TASK, len(readers))):
            try:
                images[place] = prepare_image(readers[place](), preprocess)
            except DECODE_ERRORS as error:
                failures[place] = reason(error)

    starts = range(0, len(readers), ROWS_PER_TASK)
    threads = threads or default_threads()
    list(map(decode_part, starts) if threads == 1 else _pool(threads, os.getpid()).map(decode_part, starts))
    return images, dict(sorted(failures.items()))


def default_threads() -> int:
    """The cores that this process may use, shared with the other processes of a launcher on this machine; at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@lru_cache(maxsize=4)
def _pool(threads: int, pid: int) -> ThreadPoolExecutor:
    """One pool for the whole process (`pid`: threads do not survive a fork). Its threads work alone: else each would
    start a team of torch's own threads, which wait for each other on busy cores.
    """
    number, all_started = torch.get_num_threads(), Barrier(threads)
    pool = ThreadPoolExecutor(threads, "decode", _compute_alone)
    list(pool.map(lambda _: all_started.wait(), range(threads)))
    torch.set_num_threads(number)  # the threads keep their 1; what libraries share comes back
    return pool


def _compute_alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread takes the number over when it is first asked for
