"""What L1 has to be, written down naively: a list of objects with their bytes, an LRU list, and a map of pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from engine.l1.cache import ALIGNMENT, Entry

Key = tuple[int, int]
"""A chain of chunks and the position in it."""


def key_bytes(key: Key) -> bytes:
    return b"chain%d/%d" % key


@dataclass(eq=False)
class Item:
    """One object: reserved until `data` is known as `committed`."""

    key: Key
    entry: Entry
    size: int
    data: bytearray
    """What has been written into its slot so far."""
    committed: bool = False
    visible: bool = True
    leases: int = 0

    @property
    def pages(self) -> range:
        first = self.entry.offset // ALIGNMENT
        return range(first, first - (-self.size // ALIGNMENT))

    @property
    def in_use(self) -> bool:
        return not self.committed or self.leases > 0


class NaiveCache:
    """The oracle of one `L1Cache`."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.live: list[Item] = []
        """Everything that occupies a slot, doomed objects included."""
        self.recency: list[Key] = []
        """Evictable objects, the least recently used in front."""

    def visible(self, key: Key) -> Item | None:
        """The object that is there or being written under this key, if any."""
        return next((item for item in self.live if item.visible and item.key == key), None)

    def ready(self) -> list[Item]:
        return [item for item in self.live if item.visible and item.committed]

    def evictable(self) -> list[Item]:
        """In the order in which they should go."""
        by_key = {item.key: item for item in self.ready()}
        return [by_key[key] for key in self.recency]

    def touch(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if key in self.recency:
                self.recency.remove(key)
                self.recency.append(key)

    def forget(self, item: Item) -> None:
        """Its slot is free again."""
        self.live.remove(item)
        item.visible = False

    def hide(self, item: Item) -> None:
        """It cannot be found any more; its slot is free unless somebody uses it."""
        item.visible = False
        if item.key in self.recency:
            self.recency.remove(item.key)
        if not item.in_use:
            self.forget(item)

    def unused(self, item: Item) -> None:
        """Its writer or last reader has left."""
        if not item.visible:
            self.forget(item)
        else:
            self.recency.append(item.key)

    def free_pages(self, without: Iterable[Item] = ()) -> list[bool]:
        """By page: free, or free if the objects of `without` were evicted."""
        free = [True] * self.pages
        gone = set(without)
        for item in self.live:
            if item not in gone:
                for page in item.pages:
                    free[page] = False
        return free

    def cheapest_eviction(self, pages: int) -> tuple[list[Item], int] | None:
        """The shortest head of the LRU list that has to be considered, and the fewest pages to evict out of it.

        None if evicting everything evictable would not make room.
        """
        candidates = self.evictable()
        for count in range(len(candidates) + 1):
            head = candidates[:count]
            costs = [self._cost(window, head) for window in windows(self.free_pages(head), pages)]
            if costs:
                return head, min(costs)
        return None

    @staticmethod
    def _cost(window: range, head: list[Item]) -> int:
        return sum(len(item.pages) for item in head if set(item.pages) & set(window))


def windows(free: list[bool], pages: int) -> Iterator[range]:
    """Every run of `pages` free pages."""
    for start in range(len(free) - pages + 1):
        if all(free[start : start + pages]):
            yield range(start, start + pages)
