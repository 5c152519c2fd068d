"""Merging of byte-pair encoding with dropout (arXiv 1910.13267, algorithm 1)."""

from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise


def merge_with_dropout(
    characters: Sequence[str], ranks: Mapping[tuple[str, str], int], kept: Iterator[bool]
) -> list[str]:
    """The words of a piece of text. `ranks`: when each merge was learnt; `kept`: whether the next possible one is done.

    Of the merges that are possible, less those that are dropped this time, the first that was learnt is done, until
    none is left. A heap finds it, so that n characters without a space take n log n steps.
    """
    words = list(characters)  # "" where a word has become a part of the one before it
    end = len(words)
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))
    possible = [(ranks[pair], place) for place, pair in enumerate(pairwise(words)) if pair in ranks]
    heapify(possible)
    dropped: list[tuple[int, int]] = []
    while possible:
        rank, place = heappop(possible)
        if (right := after[place]) == end or ranks.get((words[place], words[right])) != rank:
            continue  # one of its words has been merged with another
        if not next(kept):
            dropped.append((rank, place))
            continue
        words[place], words[right] = words[place] + words[right], ""
        after[place] = after[right]
        if after[place] < end:
            before[after[place]] = place
        for left in (before[place], place):
            if left >= 0 and after[left] < end and (pair := (words[left], words[after[left]])) in ranks:
                heappush(possible, (ranks[pair], left))
        while dropped:  # they may be done next time
            heappush(possible, dropped.pop())
    return [word for word in words if word]
