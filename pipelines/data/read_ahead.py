"""The schedule of reading: in chunks of several batches, beside the consumer where it computes on a GPU."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Request = TypeVar("Request")

CHUNK_BYTES, CHUNK_ROWS = 2**25, 1024


def batches_per_chunk(batch_size: int, image_bytes: int) -> int:
    """How many batches are read at once: enough that threads are well used, few enough for memory and for the wait
    before the first batch.
    """
    return max(1, min(CHUNK_ROWS // batch_size, CHUNK_BYTES // max(1, batch_size * image_bytes)))


def read_ahead(
    read: Callable[[Request], Item], requests: Iterable[Request], beside: bool | None = None
) -> Iterator[Item]:
    """`read` of each request, in order. With `beside`, up to two are read by a thread while the caller works on the one
    before. The default is to do so where there is a GPU: on a CPU the network's own threads keep every core busy and
    wait for each other, so that decoding beside them slows both down more than taking turns.
    """
    requests = iter(requests)
    if not (torch.cuda.is_available() if beside is None else beside):
        yield from map(read, requests)
        return
    with ThreadPoolExecutor(1, "read") as reader:
        running: deque[Future[Item]] = deque(reader.submit(read, request) for request in islice(requests, 2))
        try:
            while running:
                item = running.popleft().result()
                running.extend(reader.submit(read, request) for request in islice(requests, 1))
                yield item
        finally:
            reader.shutdown(cancel_futures=True)
