"""Objects that were evicted, remembered by key for a while. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import islice
from typing import Final, NamedTuple

_FINGERPRINT_MASK: Final = (1 << 60) - 1
"""60 bits are the longest integer that Python keeps in 32 bytes. Two keys of one fingerprint cost a wrong guess."""
_SHARED: Final = 1024
"""Different `Ghost`s that are kept to be shared."""


class Ghost(NamedTuple):
    """What is remembered of an object besides its key."""

    size: int
    mark: object
    """The policy's own."""


class Ghosts:
    """A queue of evicted objects: the oldest is forgotten first, and any can be taken out. O(1) amortised.

    Costs a fingerprint of its key and a place in a table for each object, 60 to 160 bytes: much of the table is empty
    where many come and go. What else is remembered is shared by those of which it is the same.
    """

    def __init__(self) -> None:
        self.size = 0
        """Bytes that the objects occupied."""
        self._ghosts: dict[int, Ghost] = {}
        """In the order in which they came, as Python's tables are."""
        self._oldest: dict[int, None] = {}
        """The first of them, the oldest one last."""
        self._shared: dict[Ghost, Ghost] = {}

    def __len__(self) -> int:
        return len(self._ghosts)

    def add(self, key: Hashable, size: int, mark: object = None) -> None:
        """Remembers an object: the newest one."""
        fingerprint = hash(key) & _FINGERPRINT_MASK
        self._take(fingerprint)
        ghost = Ghost(size, mark)
        self._ghosts[fingerprint] = self._shared.setdefault(ghost, ghost)
        if len(self._shared) > _SHARED:
            self._shared.clear()
        self.size += size

    def take(self, key: Hashable) -> Ghost | None:
        """Forgets an object, and tells what was remembered; None if nothing was."""
        return self._take(hash(key) & _FINGERPRINT_MASK)

    def trim(self, limit: int) -> list[Ghost]:
        """Forgets the oldest until they are `limit` bytes or fewer; returns what was forgotten."""
        forgotten = []
        while self.size > limit:
            if not self._oldest:
                self._find_oldest()
            fingerprint, _ = self._oldest.popitem()
            ghost = self._ghosts.pop(fingerprint)
            self.size -= ghost.size
            forgotten.append(ghost)
        return forgotten

    def _take(self, fingerprint: int) -> Ghost | None:
        ghost = self._ghosts.pop(fingerprint, None)
        if ghost is not None:
            self._oldest.pop(fingerprint, None)
            self.size -= ghost.size
        return ghost

    def _find_oldest(self) -> None:
        """PERF: A table is walked past all that was taken out at its start, so that many are looked for at once."""
        count = 256 + len(self._ghosts) // 64
        self._oldest = dict.fromkeys(reversed(list(islice(self._ghosts, count))))
