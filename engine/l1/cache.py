"""What L1 holds, and who uses it. Pure: offsets and counts; the bytes themselves are in the arena.

An object is born *reserved*: its slot is being written and nobody can find it. `commit` makes it *ready*: it can be
found, and leased by readers any number of times. It ends when the policy evicts it, which happens only while it is not
leased, or when a clear *dooms* it: it cannot be found from then on, and its slot is freed when its last user
ends. So a slot never changes owner while anybody reads or writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from engine.keys import Namespace
from engine.l1.allocator import Allocator
from engine.l1.history import History
from engine.l1.policies.base import EvictionPolicy
from engine.l1.policies.handover import Handover
from engine.roster import Page, Roster
from engine.status import Cleared, MissReason

ALIGNMENT: Final = 4096
"""Slots begin at multiples of this and occupy multiples of it; capacity counts what they occupy."""


class NoSpaceError(Exception):
    """No room can be made for an object now: too much is leased or being written. Nothing was changed."""


class Entry:
    """One object of L1. Only `L1Cache` changes it."""

    __slots__ = ("key", "leases", "namespace", "number", "offset", "ready", "seat", "since", "size", "visible")

    def __init__(self, key: bytes, namespace: Namespace, offset: int, size: int, since: float, number: int) -> None:
        self.key: Final = key
        self.namespace: Final = namespace
        self.offset: Final = offset
        """Bytes from the start of the arena."""
        self.size: Final = size
        """Bytes occupied."""
        self.since: Final = since
        """When the slot was reserved, in the engine's monotonic seconds."""
        self.number: Final = number
        """Counts up: what was reserved later has a higher one."""
        self.seat = -1
        """In the cache's roster, while it is visible."""
        self.leases = 0
        self.ready = False
        """Completely written."""
        self.visible = True
        """Can be found, or will be once it is ready. False means doomed."""


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    stored_objects: int = 0
    evicted_objects: int = 0
    evicted_bytes: int = 0
    refused_objects: int = 0
    cleared_objects: int = 0
    absent_reads: int = 0
    unready_reads: int = 0


class L1Cache:
    """The objects of L1 by key. Belongs to the engine thread."""

    def __init__(self, capacity: int, policy: EvictionPolicy) -> None:
        self.counters = Counters()
        self.history: Final = History()
        self._allocator = Allocator(capacity - capacity % ALIGNMENT)
        self._policy = policy
        self._entries: dict[bytes, Entry] = {}
        self._roster = Roster[Entry]()
        """The entries of the table."""
        self._reserved_ever = 0
        self._in_use: set[Entry] = set()
        """Entries that are being written or leased, doomed ones included."""
        self._leased = 0
        self._ready = 0
        self._ready_bytes = 0
        self._reserved_bytes = 0

    @property
    def capacity(self) -> int:
        return self._allocator.capacity

    @property
    def used(self) -> int:
        """Bytes occupied, by whatever is reserved, ready or doomed."""
        return self._allocator.used

    @property
    def ready_objects(self) -> int:
        """Objects that can be found."""
        return self._ready

    @property
    def objects_in_use(self) -> tuple[int, int]:
        """How many objects are leased, and how many are being written."""
        return self._leased, len(self._in_use) - self._leased

    @property
    def reserved_bytes(self) -> int:
        """Bytes occupied by the objects that are being written, doomed ones included."""
        return self._reserved_bytes

    @property
    def ready_bytes(self) -> int:
        """Bytes of the objects that can be found."""
        return self._ready_bytes

    @property
    def next_number(self) -> int:
        """The number of the entry that is reserved next."""
        return self._reserved_ever

    @property
    def seats(self) -> int:
        """How far a walk over all entries goes."""
        return len(self._roster)

    def page(self, seat: int, count: int) -> Page[Entry]:
        """The visible entries on `count` seats; costs as much, so a walk is made in pages."""
        return self._roster.page(seat, count)

    def entry(self, key: bytes) -> Entry | None:
        """The object, whether it is ready or being written."""
        return self._entries.get(key)

    def find(self, key: bytes) -> Entry | None:
        """The object, if it is ready."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.ready else None

    def miss_reason(self, key: bytes) -> MissReason:
        """Why `find` does not find an object."""
        return "being_written" if key in self._entries else self.history.reason(key)

    def holds(self, key: bytes) -> bool:
        """True if the object is ready or being written."""
        return key in self._entries

    def reserve(self, key: bytes, size: int, namespace: Namespace, now: float) -> Entry:
        """A slot of `size` bytes to be written for an absent key, evicting what it needs.

        Raises NoSpaceError if that is not possible; nothing was evicted then.
        """
        occupied = -(-size // ALIGNMENT) * ALIGNMENT
        offset = self._allocator.allocate(occupied)
        if offset is None:
            for victim in self._room(occupied):
                self._evict(victim)
            offset = self._allocator.allocate(occupied)
        if offset is None:
            raise NoSpaceError
        entry = self._entries[key] = Entry(key, namespace, offset, occupied, now, self._reserved_ever)
        entry.seat = self._roster.add(entry)
        self._reserved_ever += 1
        self._in_use.add(entry)
        self._reserved_bytes += occupied
        return entry

    def commit(self, entry: Entry) -> None:
        """The slot is written. A doomed object is freed, any other is ready from now on."""
        entry.ready = True
        self._reserved_bytes -= entry.size
        if entry.visible:
            self.counters.stored_objects += 1
            self.history.stored(entry.key)
            self._ready += 1
            self._ready_bytes += entry.size
        self._settle(entry, new=True)

    def abort(self, entry: Entry) -> None:
        """The slot was not written, or not wholly."""
        self._reserved_bytes -= entry.size
        if entry.visible:
            self._hide(entry)
        self._free(entry)

    def refuse(self, keys: Iterable[bytes]) -> None:
        """No room could be made for these objects."""
        for key in keys:
            self.counters.refused_objects += 1
            self.history.left(key, "refused")

    def lease(self, entry: Entry, count: int = 1) -> None:
        """Keeps a ready object where it is until `release` was called as often."""
        if not entry.leases:
            self._policy.hold(entry.key)
            self._in_use.add(entry)
            self._leased += 1
        entry.leases += count

    def release(self, entry: Entry, count: int = 1) -> None:
        entry.leases -= count
        if not entry.leases:
            self._leased -= 1
            self._settle(entry, new=False)

    def touch(self, keys: Iterable[bytes]) -> None:
        """A request used these objects, last chunk first."""
        self._policy.touch(keys)

    def doom(self, entry: Entry, reason: MissReason) -> None:
        """Makes an object impossible to find; its slot is freed by its last user, or now if there is none."""
        if not entry.visible:
            return
        self._hide(entry)
        self.history.left(entry.key, reason)
        if entry.ready:
            self._policy.remove(entry.key)
            self.counters.cleared_objects += reason == "cleared"
        if entry not in self._in_use:
            self._free(entry)

    def clear(self) -> Cleared:
        """Makes everything impossible to find at once. Costs as much as there are objects in use, not more."""
        cleared = Cleared(self._ready, self._ready_bytes)
        self.counters.cleared_objects += self._ready
        self.history.cleared(self._entries)
        self._entries, self._roster = {}, Roster()
        self._ready = self._ready_bytes = 0
        self._policy.clear()
        for entry in self._in_use:
            if entry.visible:
                self.history.left(entry.key, "cleared")
                entry.visible = False
        self._allocator.keep_only((entry.offset, entry.size) for entry in self._in_use)
        return cleared

    # What operators change while it runs

    def set_capacity(self, capacity: int) -> None:
        """From now on objects are put below this. Objects behind it stay until `evict_beyond`."""
        self._allocator.set_capacity(capacity - capacity % ALIGNMENT)

    def evict_beyond(self, seat: int, count: int) -> list[Entry]:
        """Evicts what lies behind the capacity on `count` seats; what is in use there is freed by its last user."""
        beyond = [entry for entry in self.page(seat, count).members if entry.offset + entry.size > self.capacity]
        for entry in beyond:
            self._evict(entry)
        return beyond

    @property
    def tail(self) -> tuple[int, int]:
        """The range behind a lowered capacity that was not cut off yet, in bytes of the arena."""
        return self._allocator.tail

    @property
    def tail_is_free(self) -> bool:
        """No object is left in it, a doomed one neither."""
        return self._allocator.tail_is_free

    def cut_tail(self) -> None:
        """The tail, which must be free, does not belong to L1 any more."""
        self._allocator.cut_tail()

    def change_policy(self, policy: EvictionPolicy) -> None:
        """Lets another policy rank the objects from now on; `hand_over` brings it those that are here."""
        self._policy = Handover(self._policy, policy)

    def hand_over(self, count: int) -> bool:
        """Moves up to `count` objects to the new policy, the coldest first; returns True when it has all of them."""
        policy = self._policy
        if isinstance(policy, Handover) and policy.move(count, lambda key: self._entries[key].size):
            self._policy = policy.new
        return not isinstance(self._policy, Handover)

    def _settle(self, entry: Entry, *, new: bool) -> None:
        """An entry has lost its last user: it becomes evictable, or is freed if it is doomed."""
        if not entry.visible:
            self._free(entry)
            return
        self._in_use.discard(entry)
        if new:
            self._policy.insert(entry.key, entry.size)
        else:
            self._policy.unhold(entry.key, entry.size)

    def _free(self, entry: Entry) -> None:
        self._in_use.discard(entry)
        self._allocator.free(entry.offset, entry.size)

    def _hide(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._roster.remove(entry.seat)
        entry.visible = False
        if entry.ready:
            self._ready -= 1
            self._ready_bytes -= entry.size

    def _evict(self, entry: Entry) -> None:
        self.doom(entry, "evicted")
        if entry.ready:
            self.counters.evicted_objects += 1
            self.counters.evicted_bytes += entry.size

    def _room(self, size: int) -> list[Entry]:
        """The fewest bytes to evict for a contiguous range of `size`, looking no further than the policy has to.

        Victims are imagined free one after the other, in the policy's order, and merged with their free neighbours
        until a run is long enough. Empty if no run ever is.
        """
        runs = _Runs(self._allocator)
        for key in self._policy.victims():
            entry = self._entries[key]
            if entry.offset + entry.size > self.capacity:
                continue
            run = runs.add(entry)
            if run[1] - run[0] >= size:
                return runs.cheapest_window(run, size)
        return []


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
