"""Whether L1 still has what was stored in it: a checksum at the commit, held against the bytes at each use. Pure.

The engine thread never looks at a byte. Whoever has an object in hand computes its checksum: the transfer thread, which
is asked for that alone where the worker copies, and the threads of L2. What is corrupt cannot be found any more, fails
the request that met it, and is counted and explained. While this is not wanted no object has a checksum, and what has
none is not verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeAlias

from engine.events import Checksum, Effect, Summed, Warn
from engine.l1.cache import L1Cache
from engine.l1.entry import Entry

Then: TypeAlias = Callable[[float, tuple[bytes, ...] | None], list[Effect]]
"""What follows when checksums are there, given the time and these; None where they cannot be had."""


class Integrity:
    """Belongs to the engine thread."""

    def __init__(self, cache: L1Cache, *, enabled: bool) -> None:
        self.enabled = enabled
        self.verified_objects = 0
        """How often an object was held against its checksum."""
        self.corrupt_objects = 0
        """How often it was not the same."""
        self._cache = cache
        self._tickets = count(1)
        self._waiting: dict[int, Then] = {}
        self._transfers_ended = False

    @property
    def running(self) -> int:
        """Questions for checksums that were not answered yet."""
        return len(self._waiting)

    def keep(self, entries: Sequence[Entry], checksums: Sequence[bytes]) -> None:
        """These objects are what they should be now."""
        if self.enabled:
            for entry, checksum in zip(entries, checksums, strict=True):
                entry.checksum = checksum

    def summed_up(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those of them that have a checksum."""
        return [entry for entry in entries if entry.checksum is not None] if self.enabled else []

    def ask(self, now: float, entries: Sequence[Entry], then: Then) -> list[Effect]:
        """Has the checksums of these slots computed, which somebody must keep until `then` is called."""
        if self._transfers_ended:
            return then(now, None)
        ticket = next(self._tickets)
        self._waiting[ticket] = then
        return [Checksum(ticket, tuple((entry.offset, entry.size) for entry in entries))]

    def summed(self, event: Summed) -> list[Effect]:
        """The checksums have come."""
        return self._waiting.pop(event.ticket)(event.now, event.checksums)

    def transfers_ended(self, now: float) -> list[Effect]:
        """Nobody will compute anything any more."""
        self._transfers_ended = True
        waiting, self._waiting = self._waiting, {}
        return [effect for then in waiting.values() for effect in then(now, None)]

    def compare(self, entries: Sequence[Entry], checksums: Sequence[bytes]) -> list[Effect]:
        """Holds the checksums of objects against those of their bytes, which may be missing altogether.

        Returns a warning for each object that is corrupt.
        """
        if not checksums:
            return []
        pairs = zip(entries, checksums, strict=True)
        corrupt = [entry for entry, checksum in pairs if entry.checksum != checksum]
        self.verified(len(entries) - len(corrupt))
        return [effect for entry in corrupt for effect in self.corrupt(entry)]

    def verified(self, objects: int) -> None:
        """So many were found to be what was stored."""
        self.verified_objects += objects

    def corrupt(self, entry: Entry) -> list[Effect]:
        """An object is not what was stored. Its slot is freed by its last user."""
        self.verified_objects += 1
        self.corrupt_objects += 1
        self._cache.doom(entry, "quarantined")
        what = f"the object {entry.key.hex()} of {entry.namespace.model_name!r} at {entry.offset} of the arena"
        return [Warn(f"L1: {what} is not what was stored: somebody has changed its bytes, or the memory fails")]
