"""What one thread notes for another: bounded, and dropped rather than waited for. Pure: no lock is needed."""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

T = TypeVar("T")


class Feed(Generic[T]):
    """A queue with one writer and one reader, each on a thread of its own. Neither ever waits for the other.

    Each of its counts is written by one of them only; what the other reads may be a moment old.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: what the items in the queue may cost together, in a unit of the writer's choice."""
        self.is_open = False
        """Somebody reads. Set by the reader's side; the writer looks at it first."""
        self.dropped = 0
        """Cost of what found no room. The writer's."""
        self.dropped_items = 0
        """How many items that were. The writer's."""
        self._limit: Final = limit
        self._items: deque[tuple[T, int]] = deque()
        self._written = 0
        self._read = 0

    def put(self, item: T, cost: int) -> None:
        """Adds an item, or drops it if there is no room. The writer's."""
        if self._written - self._read + cost > self._limit:
            self.dropped += cost
            self.dropped_items += 1
            return
        self._written += cost
        self._items.append((item, cost))

    def take(self) -> T | None:
        """The oldest item; None if there is none now. The reader's."""
        if not self._items:
            return None
        item, cost = self._items.popleft()
        self._read += cost
        return item
