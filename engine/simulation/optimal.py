"""The optimum: what a cache could do that knows all requests to come. Pure.

Belady: A study of replacement algorithms for a virtual-storage computer, IBM Systems Journal 5(2), 1966. Here with
bypass: a block need not be stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import Final

_NEVER: Final = -1


class Optimal:
    """A cache of `capacity` blocks that keeps those which are used again first.

    Of blocks whose next use is the same request the ones deeper in it go first. A block is asked for wherever the ones
    behind it are, so it is never used later than they are, and no prefix is given up before its suffix: each block that
    is kept is part of a hit. No other choice has more hits. O(log n) a block.
    """

    def __init__(self, requests: Sequence[Sequence[int]], capacity: int) -> None:
        """`requests`: the blocks of all requests that will be served, in this order."""
        self._capacity = capacity
        self._next_uses = iter(_next_uses(requests))
        self._resident: dict[int, int] = {}
        """The index of the request that uses a block next."""
        self._ranking: list[tuple[int, int, int]] = []
        """A heap of blocks, the one to go first in front: next use and depth, negative, and the block.

        A block leaves an entry behind for each use that is past. Those never come to the front: what is resident is
        used later, and is in here too.
        """

    def request(self, blocks: Sequence[int]) -> int:
        """Serves the next request; returns how many leading blocks were there."""
        resident = self._resident
        hits = next((index for index, block in enumerate(blocks) if block not in resident), len(blocks))
        uses = list(zip(range(len(blocks)), blocks, next(self._next_uses), strict=True))
        absent = [use for use in uses if use[1] not in resident]
        # What is here gets its next use first, so that what is not is compared with that.
        for depth, block, next_use in uses:
            if block in resident:
                self._update(depth, block, next_use)
        for depth, block, next_use in absent:
            if next_use != _NEVER and self._has_room(depth, next_use):
                self._update(depth, block, next_use)
        return hits

    def _update(self, depth: int, block: int, next_use: int) -> None:
        if next_use == _NEVER:
            del self._resident[block]
        else:
            self._resident[block] = next_use
            heappush(self._ranking, (-next_use, -depth, block))

    def _has_room(self, depth: int, next_use: int) -> bool:
        """Whether a block may come, after evicting one if it is worth that."""
        resident, ranking = self._resident, self._ranking
        if len(resident) < self._capacity:
            return True
        if ranking[0][:2] >= (-next_use, -depth):
            return False
        del resident[heappop(ranking)[2]]
        return True


def _next_uses(requests: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """For each request and block the index of the next request that has it."""
    seen: dict[int, int] = {}
    return list(reversed([*_from_the_end(requests, seen)]))


def _from_the_end(requests: Sequence[Sequence[int]], seen: dict[int, int]) -> Iterator[tuple[int, ...]]:
    for index in range(len(requests) - 1, -1, -1):
        blocks = requests[index]
        yield tuple(seen.get(block, _NEVER) for block in blocks)
        seen.update(dict.fromkeys(blocks, index))
