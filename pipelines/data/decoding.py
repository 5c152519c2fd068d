"""Decoding many images at once: large ones by a few threads side by side, small ones by one thread at a time.

PIL and torch work without Python's lock, which lets threads decode large images side by side. Between small ones they
would hand that lock to each other all the time, which takes longer than the images: two threads decode digits three
times slower than one.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from threading import Barrier, Lock

import torch
from jaxtyping import UInt8
from torch import Tensor

from pipelines.data.image_files import DECODE_ERRORS, reason
from pipelines.data.preprocess import Preprocess, prepare_image
from pipelines.data.source import Reader

ROWS_PER_TASK = 16  # large enough that handing a task over costs nothing beside it
MOST_THREADS = 8
SMALL_SECONDS = 150e-6  # an image that takes one thread so long is decoded as quickly by one thread as by two


class Decoder:
    """Decodes the images of one data set, at most `threads` of them at once: 0 takes `default_threads()`, 1 is the
    calling thread.

    Images are taken to be small until three quarters of a task take one thread longer, be it because they are large
    or because their files are far away.
    """

    def __init__(self, preprocess: Preprocess, threads: int = 0):
        self.preprocess, self.threads = preprocess, threads or default_threads()
        self.small = True

    def __call__(self, readers: Sequence[Reader]) -> tuple[UInt8[Tensor, "n c size size"], dict[int, str]]:
        """The prepared images of some rows in their order, as one tensor, and why some could not be decoded. Places
        of such rows hold zeros.
        """
        shape = (len(readers), self.preprocess.channels, self.preprocess.size, self.preprocess.size)
        images, failures = torch.zeros(shape, dtype=torch.uint8), {}

        def decode(start: int) -> list[float]:
            stop = min(start + ROWS_PER_TASK, len(readers))
            prepared, times = [], [time.perf_counter()]
            for place in range(start, stop):
                try:
                    prepared.append(prepare_image(readers[place](), self.preprocess))
                except DECODE_ERRORS as error:
                    prepared.append(torch.zeros(shape[1:], dtype=torch.uint8))
                    failures[place] = reason(error)
                times.append(time.perf_counter())
            torch.stack(prepared, out=images[start:stop])
            return [end - begin for begin, end in pairwise(times)]

        self._run(decode, deque(range(0, len(readers), ROWS_PER_TASK)))
        return images, dict(sorted(failures.items()))

    def _run(self, decode: Callable[[int], list[float]], starts: deque[int]) -> None:
        if self.small:
            with _small_images(os.getpid()):
                while self.small and starts:
                    times = sorted(decode(starts.popleft()))
                    self.small = len(times) < ROWS_PER_TASK or times[ROWS_PER_TASK // 4] < SMALL_SECONDS
        if self.threads == 1:
            list(map(decode, starts))
        elif starts:
            list(_pool(self.threads, os.getpid()).map(decode, starts))


@lru_cache(maxsize=4)
def _small_images(pid: int) -> Lock:
    """Held by the thread that decodes small images, in the process `pid`: a fork may copy a lock that is held."""
    return Lock()


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
