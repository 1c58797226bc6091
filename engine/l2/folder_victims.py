"""Which objects of a folder go when there is no room: about those that were used the longest ago, without an index."""

from __future__ import annotations

from random import shuffle
from threading import Lock
from typing import Final

from engine.l2.folder import SHARDS, Folder, Found

_LEAST_SHARDS: Final = SHARDS // 16
_LEAST_OBJECTS: Final = 1024
"""So that a small folder is looked at as a whole, which makes the order exact."""
_PART: Final = 8
"""The oldest eighth of what was seen goes before the next look. PERF: One look serves many evictions; more of it would
let go of what is old among its neighbours only."""


class Victims:
    """May be called from any thread; a look at the folder lets the others wait."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._lock = Lock()
        self._found: list[Found] = []
        """The oldest last. They may have been used or removed since."""

    def next(self) -> Found | None:
        """The next to go, or None if there is no object at all. Raises OSError."""
        with self._lock:
            if not self._found:
                self._found = self._look()
            return self._found.pop() if self._found else None

    def _look(self) -> list[Found]:
        seen = self._see()
        seen.sort(key=lambda found: found.stamp)
        return seen[: -(-len(seen) // _PART)][::-1]

    def _see(self) -> list[Found]:
        """A random part of the folder."""
        shards = list(range(SHARDS))
        shuffle(shards)
        seen: list[Found] = []
        for number, shard in enumerate(shards):
            if number >= _LEAST_SHARDS and len(seen) >= _LEAST_OBJECTS:
                break
            seen += self._folder.objects(shard)
        return seen
