"""What to evict so that a contiguous range becomes free. Pure; evicts nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Final

from engine.l1.allocator import Allocator
from engine.l1.entry import Entry
from engine.l1.places import Places

_LOOKS: Final = 256
"""Victims that are looked at in the policy's order before neighbours are taken."""
_GAPS: Final = 256
"""Gaps between objects in use that are looked at."""

MayGo = Callable[[Entry], bool]
"""Told of one object after the other, whether it may go too."""


class RoomFinder:
    """Finds room among objects that may be evicted.

    The policy's order comes first: its victims are imagined free one after the other, and merged with what is free at
    their sides, until a run is long enough. With objects of one size that is the first victim. Where sizes are mixed it
    could take very many; then the neighbours of the coldest victim go with it, whatever their rank; and if objects in
    use stand close to that one, what lies in a gap between others. So a range is found if there is one, unless it is
    behind very many gaps.
    """

    def __init__(self, allocator: Allocator, places: Places) -> None:
        self._allocator = allocator
        self._places = places

    def find(
        self,
        size: int,
        condemned: Collection[Entry],
        victims: Iterable[Entry],
        allowance: Callable[[], MayGo],
        in_use: Iterable[Entry],
    ) -> Collection[Entry]:
        """Objects without which there is a free range of `size` bytes, where there is none; empty if there are none.

        `condemned` ones go in any case; `victims` are further ones in the order of the policy. `allowance` begins to
        tell of any objects which of them may be evicted together.
        """
        runs = _Runs(self._allocator)
        for victim in condemned:
            run = runs.add(victim) if self._is_inside(victim) else (0, 0)
            if run[1] - run[0] >= size:
                return condemned
        coldest: Entry | None = None
        for victim in islice(victims, _LOOKS):
            if victim in condemned or not self._is_inside(victim):
                continue
            if coldest is None and not condemned and victim.size >= size:
                return [victim]
            coldest = coldest or victim
            run = runs.add(victim)
            if run[1] - run[0] >= size:
                return _union(condemned, runs.cheapest_window(run, size))
        window = self._around(coldest, size, allowance()) if coldest else []
        return _union(condemned, window) if window else self._between(size, condemned, allowance, in_use)

    def _is_inside(self, entry: Entry) -> bool:
        """It does not reach behind the capacity, where nothing is put."""
        return entry.end <= self._allocator.capacity

    def _around(self, victim: Entry, size: int, may_go: MayGo) -> list[Entry]:
        """The victim with as many of its neighbours as it takes, those behind it first; empty if that is not enough."""
        if not may_go(victim):
            return []
        allocator, taken = self._allocator, [victim]
        start, end = allocator.free_start_before(victim.offset), allocator.free_end_after(victim.end)
        while end - start < size:
            behind = self._places.at(end)
            if behind is None or not self._is_inside(behind) or not may_go(behind):
                break
            taken.append(behind)
            end = allocator.free_end_after(behind.end)
        while end - start < size:
            before = self._places.before(start)
            if before is None or before.end != start or not may_go(before):
                return []
            taken.append(before)
            start = allocator.free_start_before(before.offset)
        return taken

    def _between(
        self, size: int, condemned: Collection[Entry], allowance: Callable[[], MayGo], in_use: Iterable[Entry]
    ) -> Collection[Entry]:
        """What lies in a gap between objects in use."""
        for start in islice(_gaps(in_use, size, self._allocator.capacity), _GAPS):
            window = self._inside(start, start + size)
            if all(map(allowance(), window)):
                return _union(condemned, window)
        return []

    def _inside(self, start: int, end: int) -> list[Entry]:
        inside = []
        for entry in self._places.walk(start):
            if entry.offset >= end:
                break
            inside.append(entry)
        return inside


def _union(condemned: Collection[Entry], window: list[Entry]) -> Collection[Entry]:
    return dict.fromkeys([*condemned, *window]) if condemned else window


def _gaps(in_use: Iterable[Entry], size: int, capacity: int) -> Iterator[int]:
    """Where gaps of `size` bytes or more start."""
    start = 0
    for offset, end in sorted((entry.offset, entry.end) for entry in in_use):
        if min(offset, capacity) - start >= size:
            yield start
        start = max(start, end)
    if capacity - start >= size:
        yield start


class _Runs:
    """Ranges that are free, or would be if the victims named so far were evicted."""

    def __init__(self, allocator: Allocator) -> None:
        self._allocator = allocator
        self._victims: dict[int, Entry] = {}
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}

    def add(self, victim: Entry) -> tuple[int, int]:
        """Counts a victim as free; returns (start, end) of the run it is in now."""
        self._victims[victim.offset] = victim
        start = self._extend_left(victim.offset)
        end = self._extend_right(victim.offset + victim.size)
        self._end_of[start], self._start_of[end] = end, start
        return start, end

    def cheapest_window(self, run: tuple[int, int], size: int) -> list[Entry]:
        """The victims inside the part of the run that has `size` bytes and costs the fewest evicted bytes."""
        pieces = list(self._pieces(*run))
        best: tuple[int, int, int] | None = None
        first = length = cost = 0
        for last, (piece_size, victim) in enumerate(pieces):
            length += piece_size
            cost += piece_size if victim else 0
            while length - pieces[first][0] >= size:
                length -= pieces[first][0]
                cost -= pieces[first][0] if pieces[first][1] else 0
                first += 1
            if length >= size and (best is None or cost < best[0]):
                best = (cost, first, last)
        assert best is not None  # the caller passes a run of at least `size`
        return [victim for _, victim in pieces[best[1] : best[2] + 1] if victim]

    def _extend_left(self, start: int) -> int:
        while True:
            further = self._allocator.free_start_before(self._start_of.get(start, start))
            if further == start:
                return start
            start = further

    def _extend_right(self, end: int) -> int:
        while True:
            further = self._allocator.free_end_after(self._end_of.get(end, end))
            if further == end:
                return end
            end = further

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, Entry | None]]:
        """The run as (size, victim), with None for what is free already."""
        while start < end:
            victim = self._victims.get(start)
            size = victim.size if victim else self._allocator.free_end_after(start) - start
            yield size, victim
            start += size
