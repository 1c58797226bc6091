"""What L1 holds, and who uses it. Pure: offsets and counts; the bytes themselves are in the arena.

An object is born *reserved*: its slot is being written and nobody can find it. `commit` makes it *ready*: it can be
found, and leased by readers any number of times. It ends when the policy evicts it, which happens only while it is not
leased, or when a clear *dooms* it: it cannot be found from then on, and its slot is freed when its last user
ends. So a slot never changes owner while anybody reads or writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final, cast, get_args

from engine.keys import Namespace
from engine.l1.allocator import Allocator
from engine.l1.entry import Entry
from engine.l1.history import History
from engine.l1.partitions import MakePolicy, Partition, Partitions, Quota
from engine.l1.places import Places
from engine.l1.policies.base import EvictionPolicy
from engine.l1.room import RoomFinder
from engine.roster import Page
from engine.status import Cleared, MissReason, RefusalReason

ALIGNMENT: Final = 4096
"""Slots begin at multiples of this and occupy multiples of it; capacity counts what they occupy."""


class NoSpaceError(Exception):
    """No room can be made for an object now. Nothing was changed."""

    def __init__(self, reason: RefusalReason) -> None:
        super().__init__(reason)
        self.reason: Final = reason


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    stored_objects: int = 0
    evicted_objects: int = 0
    evicted_bytes: int = 0
    refused_objects: dict[RefusalReason, int] = field(default_factory=lambda: dict.fromkeys(get_args(RefusalReason), 0))
    cleared_objects: int = 0
    clears: int = 0
    """How often everything was cleared."""
    absent_reads: int = 0
    unready_reads: int = 0
    unsaved_evictions: Counter[int] = field(default_factory=Counter)
    """By bit, objects evicted without that bit of `Entry.saved`, of those that `watch_saved` names."""


class L1Cache:
    """The objects of L1 by key. Belongs to the engine thread."""

    def __init__(self, capacity: int, make_policy: MakePolicy) -> None:
        """`capacity` in bytes, rounded down to the alignment."""
        capacity -= capacity % ALIGNMENT
        self.counters = Counters()
        self.history: Final = History()
        self.epoch = 0
        """Entries carry the one in which they were reserved; `next_epoch` begins another."""
        self._allocator = Allocator(capacity)
        self._partitions = Partitions(make_policy, capacity)
        self._places = Places(ALIGNMENT)
        self._rooms = RoomFinder(self._allocator, self._places)
        self._sizes: dict[int, int] = {}
        """Every size that occurred, by itself: objects of one size share the number."""
        self._entries: dict[bytes, Entry] = {}
        self._in_use: set[Entry] = set()
        """Entries that are being written or leased, doomed ones included."""
        self._in_use_bytes = 0
        self._leased = 0
        self._borrowed = 0
        """Objects that are borrowed and not leased."""
        self._ready = 0
        self._ready_bytes = 0
        self._reserved_bytes = 0
        self.watch_saved: tuple[int, ...] = ()
        """Bits of `Entry.saved` whose absence is counted when an object is evicted."""
        self._moves = 0
        """Changes after which some objects may still be ranked by another policy than their partition's present one."""

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
        return self._leased, len(self._in_use) - self._leased - self._borrowed

    @property
    def reserved_bytes(self) -> int:
        """Bytes occupied by the objects that are being written, doomed ones included."""
        return self._reserved_bytes

    @property
    def ready_bytes(self) -> int:
        """Bytes of the objects that can be found."""
        return self._ready_bytes

    @property
    def end(self) -> int:
        """How far a walk over all objects goes: bytes from the start of the arena."""
        return self._allocator.tail[1]

    def next_epoch(self) -> int:
        """Begins an epoch: only entries that are reserved later have it."""
        self.epoch += 1
        return self.epoch

    def page(self, offset: int, count: int) -> Page[Entry]:
        """The next `count` visible entries in the order of their places, from an address on."""
        members: list[Entry] = []
        for entry in self._places.walk(offset):
            if len(members) == count:
                return Page(members, entry.offset)
            if entry.visible:
                members.append(entry)
        return Page(members, None)

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

    def reserve(self, key: bytes, size: int, namespace: Namespace, now: float, parent: Entry | None = None) -> Entry:
        """A slot of `size` bytes to be written for an absent key, evicting what it needs.

        `parent` is the object before it in its prompt, if that is known. Raises NoSpaceError if no room can be made;
        nothing was evicted then.
        """
        occupied = self._occupied(size)
        salt = namespace.cache_salt
        partition = self._partitions.of(salt)
        partition.policy.expect(key, occupied)
        try:
            victims = self._room(partition, occupied)
        except NoSpaceError:
            self._partitions.forget_unused(salt)
            raise
        # NOTE: Before the victims go: the partition of a tenant that has nothing for a moment would end.
        self._partitions.count(salt, occupied)
        for victim in victims:
            self._evict(victim)
        offset = self._allocator.allocate(occupied)
        assert offset is not None  # `_room` names what it takes
        entry = self._entries[key] = Entry(key, namespace, offset, occupied, now, self.epoch)
        self._places.add(entry)
        partition.policy.insert(entry, parent if parent is not None and parent.visible else None)
        self._begin_use(entry)
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
        self._end_use(entry)

    def abort(self, entry: Entry) -> None:
        """The slot was not written, or not wholly."""
        self._reserved_bytes -= entry.size
        if entry.visible:
            _policy_of(entry).remove(entry)
            self._hide(entry)
        self._end_use(entry)

    def refuse(self, keys: Iterable[bytes], reason: RefusalReason) -> None:
        """No room could be made for these objects."""
        for key in keys:
            self.counters.refused_objects[reason] += 1
            self.history.left(key, "refused")

    def lease(self, entry: Entry, count: int = 1) -> None:
        """Keeps a ready object where it is until `release` was called as often."""
        if not entry.leases:
            _policy_of(entry).hold(entry)
            if entry.borrowers:
                self._borrowed -= 1
            else:
                self._begin_use(entry)
            self._leased += 1
        entry.leases += count

    def release(self, entry: Entry, count: int = 1) -> None:
        entry.leases -= count
        if not entry.leases:
            self._leased -= 1
            if not entry.borrowers:
                self._end_use(entry)
                return
            self._borrowed += 1
            if entry.visible:
                _policy_of(entry).unhold(entry)

    def borrow(self, entry: Entry) -> None:
        """Keeps the slot of a ready object as it is until `give_back` was called as often.

        Unlike a lease it leaves the object where it is ranked. When its turn comes, others go instead.
        """
        entry.borrowers += 1
        if entry.borrowers == 1 and not entry.leases:
            self._borrowed += 1
            self._begin_use(entry)

    def give_back(self, entry: Entry) -> None:
        entry.borrowers -= 1
        if entry.borrowers or entry.leases:
            return
        self._borrowed -= 1
        self._in_use.discard(entry)
        self._in_use_bytes -= entry.size
        if not entry.visible:
            self._free(entry)

    def use(self, entries: Sequence[Entry], now: float) -> None:
        """A request asks for these objects of one salt, last chunk first; told once a request."""
        if not entries:
            return
        if self._partitions.are_several:
            for entry in entries:
                entry.used = now
        if self._moves:
            for entry in entries:
                self._move_to_present_policy(entry)
        _policy_of(entries[0]).hit(entries)

    def coldest(self, part: int, most: int | None = None) -> list[Entry]:
        """What would be evicted next: a `part`-th of the bytes of each partition, as far as it is not in use.

        Of each partition it looks at no more than the first `most` objects.
        """
        found: list[Entry] = []
        for partition in self._partitions:
            left = partition.used // part
            for entry in islice(partition.victims(), most):
                if left <= 0:
                    break
                left -= entry.size
                if entry not in self._in_use:
                    found.append(entry)
        return found

    def drop(self, entry: Entry) -> None:
        """Evicts an object that nobody uses."""
        if entry.visible and entry not in self._in_use:
            self._evict(entry)

    def touch(self, keys: Iterable[bytes]) -> None:
        """A request whose `use` was told goes on with these objects of one salt, last chunk first."""
        entries = [entry for key in keys if (entry := self._entries.get(key)) is not None]
        if not entries:
            return
        if self._moves:
            for entry in entries:
                self._move_to_present_policy(entry)
        _policy_of(entries[0]).refresh(entries)

    def doom(self, entry: Entry, reason: MissReason) -> None:
        """Makes an object impossible to find; its slot is freed by its last user, or now if there is none."""
        if not entry.visible:
            return
        _policy_of(entry).remove(entry)
        self._depart(entry, reason)
        self.counters.cleared_objects += entry.ready and reason == "cleared"

    def clear(self) -> Cleared:
        """Makes everything impossible to find at once. Costs as much as there are objects in use, not more."""
        cleared = Cleared(self._ready, self._ready_bytes)
        self.counters.cleared_objects += self._ready
        self.counters.clears += 1
        self.history.cleared(self._entries)
        self._entries = {}
        self._ready = self._ready_bytes = 0
        for entry in self._in_use:
            if entry.visible:
                self.history.left(entry.key, "cleared")
                entry.visible = False
        self._partitions.clear(self._in_use)
        self._places = Places(ALIGNMENT)
        self._rooms = RoomFinder(self._allocator, self._places)
        for entry in self._in_use:
            self._places.add(entry)
        self._allocator.keep_only((entry.offset, entry.size) for entry in self._in_use)
        return cleared

    # What operators change while it runs

    def set_capacity(self, capacity: int) -> None:
        """From now on objects are put below this. Objects behind it stay until `evict_beyond`."""
        capacity -= capacity % ALIGNMENT
        self._allocator.set_capacity(capacity)
        self._partitions.set_capacity(capacity)

    def evict_beyond(self, offset: int, count: int) -> Page[Entry]:
        """Evicts what lies behind the capacity, of the next `count` entries from an address on; returns these.

        What is in use there is freed by its last user.
        """
        page = self.page(offset, count)
        beyond = [entry for entry in page.members if entry.end > self.capacity]
        for entry in beyond:
            self._evict(entry)
        return Page(beyond, page.next_place)

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

    def change_policy(self, make_policy: MakePolicy) -> None:
        """Lets another policy rank the objects from now on; `hand_over` brings it those that are here.

        Until then they are ranked by the former one, and go first; what is used moves by itself. Call `end_move` then.
        """
        self._partitions.change_policy(make_policy)
        self._moves += 1

    def hand_over(self, count: int) -> bool:
        """Moves up to `count` objects to the present policies; returns True when these have all of them."""
        for partition in self._partitions:
            while partition.former:
                for entry in partition.former[-1].members():
                    if not count:
                        return False
                    count -= 1
                    self._adopt(cast(Entry, entry))
                # NOTE: What is held moves when it is used; it must not go on ranking when nobody asks its policy.
                for entry in self._in_use:
                    if entry.visible and _policy_of(entry) is partition.former[-1]:
                        self._move_to_present_policy(entry)
                partition.former.pop()
        return True

    def set_quota(self, salt: str, quota: Quota | None) -> None:
        """What a tenant may have from now on; None stands for the default.

        `bring_home` and `hand_over` bring its objects to where they are ranked from now on, and `evict_over_limits`
        takes what it has too much. Call `end_move` then.
        """
        self._partitions.set_quota(salt, quota)
        self._moves += 1

    def set_default_quota(self, quota: Quota) -> None:
        """What the tenants without a quota of their own may have, as `set_quota` for each of them."""
        self._partitions.set_default(quota)
        self._moves += 1

    def bring_home(self, offset: int, count: int) -> int | None:
        """Has the next `count` objects from an address on ranked by their partitions; returns where to go on."""
        page = self.page(offset, count)
        for entry in page.members:
            if _policy_of(entry) is not self._partitions.of(entry.namespace.cache_salt).policy:
                if entry.held:
                    self._move_to_present_policy(entry)
                else:
                    self._adopt(entry)
        return page.next_place

    def evict_over_limits(self, count: int) -> list[Entry]:
        """Evicts up to `count` objects of tenants that have more than their limit; returns them."""
        evicted: list[Entry] = []
        # NOTE: A copy, since the partition of a tenant that loses everything may end.
        for partition in [*self._partitions]:
            while partition.missing(0) and len(evicted) < count:
                victim = next(self._free_to_go(partition.victims()), None)
                if victim is None:
                    break
                self._evict(victim)
                evicted.append(victim)
        return evicted

    def end_move(self) -> None:
        """A change is complete: every object is where it belongs."""
        self._moves -= 1

    @property
    def quotas(self) -> Mapping[str, Quota]:
        """By cache salt, of those that have one of their own."""
        return self._partitions.quotas

    @property
    def default_quota(self) -> Quota:
        return self._partitions.default

    @property
    def usage(self) -> Mapping[str, int]:
        """Bytes occupied by the objects of each cache salt that has any."""
        return self._partitions.usage

    def _adopt(self, entry: Entry) -> None:
        """An object, not held, goes to the present policy of its partition, in front of what that has."""
        _policy_of(entry).remove(entry)
        self._partitions.of(entry.namespace.cache_salt).policy.adopt(entry)

    def _move_to_present_policy(self, entry: Entry) -> None:
        """As what is used now."""
        present = self._partitions.of(entry.namespace.cache_salt).policy
        if _policy_of(entry) is present:
            return
        _policy_of(entry).remove(entry)
        present.expect(entry.key, entry.size)
        present.insert(entry, None)
        if not entry.held:
            present.unhold(entry)

    def _occupied(self, size: int) -> int:
        occupied = -(-size // ALIGNMENT) * ALIGNMENT
        return self._sizes.setdefault(occupied, occupied)

    def _begin_use(self, entry: Entry) -> None:
        self._in_use.add(entry)
        self._in_use_bytes += entry.size

    def _end_use(self, entry: Entry) -> None:
        """An entry has lost its last user: it becomes evictable, or is freed if it is doomed."""
        self._in_use.discard(entry)
        self._in_use_bytes -= entry.size
        if entry.visible:
            _policy_of(entry).unhold(entry)
        else:
            self._free(entry)

    def _free(self, entry: Entry) -> None:
        self._allocator.free(entry.offset, entry.size)
        self._places.remove(entry)
        self._partitions.count(entry.namespace.cache_salt, -entry.size)

    def _hide(self, entry: Entry) -> None:
        del self._entries[entry.key]
        entry.visible = False
        if entry.ready:
            self._ready -= 1
            self._ready_bytes -= entry.size

    def _evict(self, entry: Entry) -> None:
        if entry.ready:
            _policy_of(entry).evict(entry)
            self.counters.evicted_objects += 1
            self.counters.evicted_bytes += entry.size
            for bit in self.watch_saved:
                if not entry.saved & bit:
                    self.counters.unsaved_evictions[bit] += 1
        else:
            _policy_of(entry).remove(entry)
        self._depart(entry, "evicted")

    def _depart(self, entry: Entry, reason: MissReason) -> None:
        self._hide(entry)
        self.history.left(entry.key, reason)
        if entry not in self._in_use:
            self._free(entry)

    def _room(self, partition: Partition, size: int) -> Collection[Entry]:
        """What to evict so that there is a free range of `size` bytes for an object. Raises NoSpaceError."""
        condemned = self._over_limit(partition, size) if partition.quota.limit is not None else ()
        if self._allocator.fits(size):
            return condemned
        victims = self._free_to_go(self._partitions.victims(partition))
        allowance = partial(self._allowance, partition)
        found = self._rooms.find(size, condemned, victims, allowance, self._in_use)
        if not found:
            enough = self.capacity - self._in_use_bytes - self._partitions.protected(partition) >= size
            raise NoSpaceError("fragmented" if enough else "in_use")
        return found

    def _free_to_go(self, victims: Iterator[Entry]) -> Iterator[Entry]:
        """Without those that are borrowed."""
        # PERF: Mostly nothing is, and then nothing has to be looked at.
        return (victim for victim in victims if not victim.borrowers) if self._borrowed else victims

    def _over_limit(self, partition: Partition, size: int) -> dict[Entry, None]:
        """Objects of the partition that have to go so that another `size` bytes are within its limit."""
        missing = partition.missing(size)
        condemned: dict[Entry, None] = {}
        for victim in self._free_to_go(partition.victims()) if missing > 0 else ():
            if missing <= 0:
                break
            condemned[victim] = None
            missing -= victim.size
        if missing > 0:
            raise NoSpaceError("quota")
        return condemned

    def _allowance(self, asking: Partition) -> Callable[[Entry], bool]:
        """Tells of one object after the other whether it may go too for an object of the partition `asking`."""
        lost: Counter[Partition] = Counter()

        def may_go(entry: Entry) -> bool:
            if entry in self._in_use:
                return False
            loser = self._partitions.of(entry.namespace.cache_salt)
            size = lost[loser] + entry.size
            if not self._partitions.may_lose(loser, asking, size):
                return False
            lost[loser] = size
            return True

        return may_go


def _policy_of(entry: Entry) -> EvictionPolicy:
    assert entry.queue is not None  # from `reserve` on, as long as it is visible
    return entry.queue.owner
