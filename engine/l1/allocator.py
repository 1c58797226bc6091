"""Places in the arena: contiguous ranges of bytes, handed out and taken back. Pure; touches no memory."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable


class Allocator:
    """Best fit over an address range, with neighbouring free ranges always merged.

    Sizes must be multiples of the alignment that offsets shall have. Cost grows with the number of *free* ranges only,
    which stays small because they are merged.

    Places come from [0, `capacity`). After the capacity was lowered, the *tail* behind it takes back what was handed
    out there, and hands out nothing.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._end = capacity
        """Where the tail ends: the highest capacity since the tail was last cut off."""
        self._used = 0
        self._size_at: dict[int, int] = {}
        """Free ranges: start -> size."""
        self._start_before: dict[int, int] = {}
        """Free ranges: end -> start."""
        self._by_size: list[tuple[int, int]] = []
        """What free ranges have below the capacity, (size, start), sorted."""
        if capacity:
            self._add(0, capacity)

    @property
    def used(self) -> int:
        """Bytes handed out, in the tail too."""
        return self._used

    @property
    def tail(self) -> tuple[int, int]:
        """Start and end of the tail; the same when there is none."""
        return self.capacity, self._end

    @property
    def tail_is_free(self) -> bool:
        """Nothing that was handed out reaches into the tail."""
        return self._start_before.get(self._end, self._end) <= self.capacity

    def allocate(self, size: int) -> int | None:
        """The offset of a free range of `size` bytes, from the smallest free range that fits; None if there is none."""
        at = bisect_left(self._by_size, (size, 0))
        if at == len(self._by_size):
            return None
        start = self._by_size[at][1]
        available = self._size_at[start]
        self._remove(start)
        if available > size:
            self._add(start + size, available - size)
        self._used += size
        return start

    def fits(self, size: int) -> bool:
        """Whether there is a free range of `size` bytes."""
        return bool(self._by_size) and self._by_size[-1][0] >= size

    def free(self, offset: int, size: int) -> None:
        """Takes back what `allocate` handed out."""
        self._used -= size
        self._give(offset, offset + size)

    def set_capacity(self, capacity: int) -> None:
        """Lowers the capacity, which leaves a tail, or raises it, first over the tail and then beyond its end."""
        end, self._end = self._end, max(self._end, capacity)
        self.capacity = min(capacity, end)
        self._by_size = sorted(
            (min(start + size, self.capacity) - start, start)
            for start, size in self._size_at.items()
            if start < self.capacity
        )
        if capacity > end:
            self.capacity = capacity
            self._give(end, capacity)

    def cut_tail(self) -> None:
        """Forgets the tail, which must be free."""
        start = self._start_before.get(self._end, self._end)
        if start < self._end:
            self._remove(start)
            if start < self.capacity:
                self._add(start, self.capacity - start)
        self._end = self.capacity

    def free_start_before(self, offset: int) -> int:
        """Where the free range that ends at `offset` starts; `offset` itself if there is none."""
        return self._start_before.get(offset, offset)

    def free_end_after(self, offset: int) -> int:
        """Where the free range that starts at `offset` ends, below the capacity; `offset` itself if there is none."""
        end = offset + self._size_at.get(offset, 0)
        return end if end <= self.capacity else max(offset, self.capacity)

    def keep_only(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Takes back everything but these (offset, size), at a cost that grows with their number alone."""
        self._size_at, self._start_before, self._by_size, self._used = {}, {}, [], 0
        free_from = 0
        for offset, size in sorted(ranges):
            if offset > free_from:
                self._add(free_from, offset - free_from)
            free_from = offset + size
            self._used += size
        if free_from < self._end:
            self._add(free_from, self._end - free_from)

    def _give(self, start: int, end: int) -> None:
        """A range is free from now on: joined with the free ranges at its sides."""
        left = self._start_before.get(start, start)
        right = end + self._size_at.get(end, 0)
        if left < start:
            self._remove(left)
        if right > end:
            self._remove(end)
        self._add(left, right - left)

    def _add(self, start: int, size: int) -> None:
        self._size_at[start] = size
        self._start_before[start + size] = start
        if start < self.capacity:
            insort(self._by_size, (min(size, self.capacity - start), start))

    def _remove(self, start: int) -> None:
        size = self._size_at.pop(start)
        del self._start_before[start + size]
        if start < self.capacity:
            del self._by_size[bisect_left(self._by_size, (min(size, self.capacity - start), start))]
