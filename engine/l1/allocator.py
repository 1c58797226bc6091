"""Places in the arena: contiguous ranges of bytes, handed out and taken back. Pure; touches no memory."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable


class Allocator:
    """Best fit over an address range, with neighbouring free ranges always merged.

    Sizes must be multiples of the alignment that offsets shall have. Cost grows with the number of *free* ranges only,
    which stays small because they are merged.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._used = 0
        self._size_at: dict[int, int] = {}
        """Free ranges: start -> size."""
        self._start_before: dict[int, int] = {}
        """Free ranges: end -> start."""
        self._by_size: list[tuple[int, int]] = []
        """Free ranges, (size, start), sorted."""
        if capacity:
            self._add(0, capacity)

    @property
    def used(self) -> int:
        """Bytes handed out."""
        return self._used

    def allocate(self, size: int) -> int | None:
        """The offset of a free range of `size` bytes, from the smallest free range that fits; None if there is none."""
        at = bisect_left(self._by_size, (size, 0))
        if at == len(self._by_size):
            return None
        available, start = self._by_size[at]
        self._remove(start)
        if available > size:
            self._add(start + size, available - size)
        self._used += size
        return start

    def free(self, offset: int, size: int) -> None:
        """Takes back what `allocate` handed out."""
        self._used -= size
        start = self.free_start_before(offset)
        end = self.free_end_after(offset + size)
        if start < offset:
            self._remove(start)
        if end > offset + size:
            self._remove(offset + size)
        self._add(start, end - start)

    def free_start_before(self, offset: int) -> int:
        """Where the free range that ends at `offset` starts; `offset` itself if there is none."""
        return self._start_before.get(offset, offset)

    def free_end_after(self, offset: int) -> int:
        """Where the free range that starts at `offset` ends; `offset` itself if there is none."""
        return offset + self._size_at.get(offset, 0)

    def keep_only(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Takes back everything but these (offset, size), at a cost that grows with their number alone."""
        self._size_at, self._start_before, self._by_size, self._used = {}, {}, [], 0
        free_from = 0
        for offset, size in sorted(ranges):
            if offset > free_from:
                self._add(free_from, offset - free_from)
            free_from = offset + size
            self._used += size
        if free_from < self.capacity:
            self._add(free_from, self.capacity - free_from)

    def _add(self, start: int, size: int) -> None:
        self._size_at[start] = size
        self._start_before[start + size] = start
        insort(self._by_size, (size, start))

    def _remove(self, start: int) -> None:
        size = self._size_at.pop(start)
        del self._start_before[start + size]
        del self._by_size[bisect_left(self._by_size, (size, start))]
