"""Objects that were evicted, remembered by key for a while. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final, NamedTuple

_FINGERPRINT_MASK: Final = (1 << 60) - 1
"""60 bits are the longest integer that Python keeps in 32 bytes. Two keys of one fingerprint cost a wrong guess."""


class Ghost(NamedTuple):
    """What is remembered of an object besides its key."""

    size: int
    mark: object
    """The policy's own."""


class Ghosts:
    """A queue of evicted objects: the oldest is forgotten first, and any can be taken out. O(1) amortised.

    Costs about 90 bytes an object: a fingerprint of its key, its place in the queue and in a table. What else is
    remembered is shared by neighbours of which it is the same.
    """

    def __init__(self) -> None:
        self.size = 0
        """Bytes that the objects occupied."""
        self._ghosts: dict[int, Ghost] = {}
        self._order: deque[int] = deque()
        self._stale: dict[int, int] = {}
        """How many of a fingerprint's places in the queue stand for nothing any more."""
        self._last = Ghost(0, None)

    def __len__(self) -> int:
        return len(self._ghosts)

    def add(self, key: Hashable, size: int, mark: object = None) -> None:
        """Remembers an object: the newest one."""
        fingerprint = hash(key) & _FINGERPRINT_MASK
        self._take(fingerprint)
        ghost = Ghost(size, mark)
        if ghost == self._last:
            ghost = self._last
        self._last = self._ghosts[fingerprint] = ghost
        self._order.append(fingerprint)
        self.size += size

    def take(self, key: Hashable) -> Ghost | None:
        """Forgets an object, and tells what was remembered; None if nothing was."""
        return self._take(hash(key) & _FINGERPRINT_MASK)

    def trim(self, limit: int) -> list[Ghost]:
        """Forgets the oldest until they are `limit` bytes or fewer; returns what was forgotten."""
        forgotten = []
        while self.size > limit:
            fingerprint = self._order.popleft()
            stale = self._stale.get(fingerprint, 0)
            if not stale:
                ghost = self._ghosts.pop(fingerprint)
                self.size -= ghost.size
                forgotten.append(ghost)
            elif stale == 1:
                del self._stale[fingerprint]
            else:
                self._stale[fingerprint] = stale - 1
        return forgotten

    def _take(self, fingerprint: int) -> Ghost | None:
        ghost = self._ghosts.pop(fingerprint, None)
        if ghost is None:
            return None
        self.size -= ghost.size
        self._stale[fingerprint] = self._stale.get(fingerprint, 0) + 1
        if len(self._order) > 2 * len(self._ghosts) + 64:
            self._sweep()
        return ghost

    def _sweep(self) -> None:
        """Leaves each fingerprint its newest place in the queue only."""
        self._stale.clear()
        kept = dict.fromkeys(fingerprint for fingerprint in reversed(self._order) if fingerprint in self._ghosts)
        self._order = deque(reversed(kept))
