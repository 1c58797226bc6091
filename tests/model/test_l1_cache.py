"""`L1Cache` against a naive cache that knows every byte."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import astuple
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.discovery import policy_maker, policy_names
from engine.keys import namespace
from engine.l1.cache import ALIGNMENT, L1Cache, NoSpaceError
from engine.l1.entry import Entry
from engine.status import MissReason, RefusalReason
from tests.model.budget import budget
from tests.model.naive_cache import Item, Key, NaiveCache, key_bytes, key_of, windows

CHAINS, CHAIN_LENGTH = 4, 3
CHUNKS = st.tuples(st.integers(0, CHAINS - 1), st.integers(0, CHAIN_LENGTH - 1))
ALL_KEYS = [(chain, index) for chain in range(CHAINS) for index in range(CHAIN_LENGTH)]
PICK = st.integers(0, 1 << 16)
NAMESPACE = namespace("m", 1, 0, bytes(16), "")
MOST_PAGES = 16
POLICIES = ["lru", "lru", *policy_names()]
REASON: RefusalReason = "in_use"
CHANGES = st.sampled_from([(), (), ("size",), ("policy",), ("size", "policy")])
"""What operators change in one run."""


class L1CacheMachine(RuleBasedStateMachine):
    """Objects of 1 to 3 pages come, are used and go. A use ends as the engine ends it: with a touch of the prefix."""

    @initialize(
        pages=st.integers(3, 14),
        spare=st.sampled_from([0, 1, 4095]),
        uniform=st.sampled_from([None, 1, 2, 3]),
        policy=st.sampled_from(POLICIES),
        changes=CHANGES,
    )
    def start(self, pages: int, spare: int, uniform: int | None, policy: str, changes: tuple[str, ...]) -> None:
        self.cache = L1Cache(pages * ALIGNMENT + spare, policy_maker(policy))
        self.arena = bytearray(MOST_PAGES * ALIGNMENT)
        self.model = NaiveCache(pages, policy)
        self.uniform = uniform
        self.changes = changes
        self.random = Random(pages)
        assert self.cache.capacity == pages * ALIGNMENT

    # What writers do

    @rule(key=CHUNKS, pages=st.integers(1, 3), short=st.sampled_from([0, 1, 100, 4095]))
    def reserve(self, key: Key, pages: int, short: int) -> None:
        if self.model.visible(key) is None:
            self._reserve(key, (self.uniform or pages) * ALIGNMENT - short)

    @rule(chain=st.integers(0, CHAINS - 1), pages=st.integers(1, 3))
    def store_chain(self, chain: int, pages: int) -> None:
        """A whole prompt at once, as the engine stores it: what is there already is leased meanwhile."""
        keys = [(chain, index) for index in range(CHAIN_LENGTH)]
        there = [item for key in reversed(keys) if (item := self.model.visible(key)) and item.committed]
        for item in there:
            self._lease(item, 1)
        absent = [key for key in keys if self.model.visible(key) is None]
        reserved: list[Item] = []
        for key in absent:
            item = self._reserve(key, (self.uniform or pages) * ALIGNMENT)
            if item is None:
                refused = absent[len(reserved) :]
                self.cache.refuse([key_bytes(each) for each in refused], REASON)
                self.model.refuse(refused)
                break
            reserved.append(item)
        for item in there:
            self._release(item, 1)
        for item in reversed(reserved):
            self._commit(item)
        self._touch_prefix((chain, CHAIN_LENGTH - 1))

    @precondition(lambda self: self._written())
    @rule(pick=PICK, part=st.floats(0, 1))
    def write_a_part(self, pick: int, part: float) -> None:
        self._write(self._pick(self._written(), pick), part)

    @precondition(lambda self: self._written())
    @rule(pick=PICK)
    def commit(self, pick: int) -> None:
        item = self._pick(self._written(), pick)
        self._commit(item)
        self._touch_prefix(item.key)

    @precondition(lambda self: self._written())
    @rule(pick=PICK)
    def abort(self, pick: int) -> None:
        item = self._pick(self._written(), pick)
        self.cache.abort(item.entry)
        self.model.forget(item)

    # What readers do

    @precondition(lambda self: self.model.ready())
    @rule(pick=PICK, count=st.integers(1, 3))
    def lease(self, pick: int, count: int) -> None:
        self._lease(self._pick(self.model.ready(), pick), count)

    @precondition(lambda self: self._leased())
    @rule(pick=PICK, count=st.integers(1, 3))
    def release(self, pick: int, count: int) -> None:
        item = self._pick(self._leased(), pick)
        self._release(item, min(count, item.leases))
        self._touch_prefix(item.key)

    @rule(key=CHUNKS)
    def use(self, key: Key) -> None:
        self._use_prefix(key)

    @rule(key=CHUNKS)
    def touch(self, key: Key) -> None:
        self._touch_prefix(key)

    @rule(key=CHUNKS)
    def look_up_and_end(self, key: Key) -> None:
        """The prefix that is there is leased, used, and let go."""
        prefix = [item for each in _prefix(key) if (item := self.model.visible(each)) and item.committed]
        for item in prefix:
            self._lease(item, 1)
        self._use_prefix(key)
        for item in prefix:
            self._release(item, 1)
        self._touch_prefix(key)

    # What saves do

    @precondition(lambda self: self.model.ready())
    @rule(pick=PICK)
    def borrow(self, pick: int) -> None:
        """Leased or not; it keeps its place in the order."""
        item = self._pick(self.model.ready(), pick)
        before = self._ranked() if self.model.order.is_exact else None
        self.cache.borrow(item.entry)
        item.borrowers += 1
        assert before is None or self._ranked() == before, "borrowing has changed the order"

    @precondition(lambda self: self._borrowed())
    @rule(pick=PICK, drop=st.booleans())
    def give_back(self, pick: int, drop: bool) -> None:
        """And let it go, as far as nobody else uses it."""
        item = self._pick(self._borrowed(), pick)
        self.cache.give_back(item.entry)
        item.borrowers -= 1
        self.model.given_back(item)
        if drop:
            self.cache.drop(item.entry)
            if item.visible and not item.in_use:
                self.model.hide(item, "evicted")

    @rule(part=st.sampled_from([1, 2, 8]))
    def look_at_the_coldest(self, part: int) -> None:
        self.the_order_of_eviction_is_right()
        assert self.cache.coldest(part) == [item.entry for item in self.model.coldest(part)]

    # What ends objects

    @precondition(lambda self: self._visible())
    @rule(pick=PICK)
    def doom(self, pick: int) -> None:
        """By an operator, or because its writer takes too long; in use or not."""
        item = self._pick(self._visible(), pick)
        reason: MissReason = "cleared" if item.committed or pick % 2 else "expired"
        self.cache.doom(item.entry, reason)
        self.cache.doom(item.entry, "evicted")
        self.model.hide(item, reason)

    @rule(really=st.integers(0, 3))
    def clear(self, really: int) -> None:
        if really:
            return
        expected = [len(item.pages) * ALIGNMENT for item in self.model.ready()]
        cleared = self.cache.clear()
        assert (cleared.objects, cleared.bytes) == (len(expected), sum(expected))
        self.model.clear()

    # What operators change

    @precondition(lambda self: "size" in self.changes)
    @rule(pages=st.integers(0, MOST_PAGES), spare=st.sampled_from([0, 1, 4095]))
    def set_capacity(self, pages: int, spare: int) -> None:
        """Lower, or raised over what is left of the tail and beyond it."""
        self.cache.set_capacity(pages * ALIGNMENT + spare)
        self.model.set_capacity(pages)

    @precondition(lambda self: "size" in self.changes and self.model.live)
    @rule(pick=PICK, spare=st.sampled_from([0, 1, 4095]), part=st.integers(1, CHAINS * CHAIN_LENGTH))
    def lower_capacity(self, pick: int, spare: int, part: int) -> None:
        """To a place before or inside of an object; what lies behind is evicted in parts, or not yet."""
        pages = self._pick(self.model.live, pick).pages[0] + pick % 2
        self.set_capacity(pages, spare)
        place: int | None = 0
        while place is not None:
            place = self._evict_beyond(place, part) if pick % 4 else None

    @precondition(lambda self: self.model.beyond())
    @rule(page=st.integers(0, MOST_PAGES), count=st.integers(1, CHAINS * CHAIN_LENGTH))
    def evict_beyond(self, page: int, count: int) -> None:
        self._evict_beyond(page * ALIGNMENT, count)

    @precondition(lambda self: self.model.end > self.model.pages and not self.model.beyond())
    @rule()
    def cut_tail(self) -> None:
        """Its memory is given back, and comes back empty."""
        start, end = self.cache.tail
        self.arena[start:end] = bytes(end - start)
        self.cache.cut_tail()
        self.model.end = self.model.pages

    @precondition(lambda self: "policy" in self.changes)
    @rule(name=st.sampled_from([*POLICIES, *[None] * 2 * len(POLICIES)]))
    def change_policy(self, name: str | None) -> None:
        """Also while the last change has not ended."""
        if name is None:
            return
        self.cache.change_policy(policy_maker(name))
        self.model.order.change(name, self.model.ranked)

    @precondition(lambda self: self.model.order.is_changing)
    @rule(count=st.sampled_from([1, 1, 1, 2, 4]))
    def hand_over(self, count: int) -> None:
        ended = self.cache.hand_over(count)
        self.the_order_of_eviction_is_right()
        if ended:
            while self.cache._moves:
                self.cache.end_move()
            present = policy_maker(self.model.order.policy)
            assert all(type(item.entry.queue.owner) is present for item in self._visible() if item.entry.queue)
            self.model.order.settle(self._ranked())

    # What always holds

    @invariant()
    def slots_are_apart_and_counted(self) -> None:
        taken = [page for item in self.model.live for page in item.pages]
        assert len(taken) == len(set(taken)), "two objects share a page"
        assert all(0 <= page < self.model.end for page in taken)
        assert self.cache.used == len(taken) * ALIGNMENT
        assert self.cache.capacity == self.model.pages * ALIGNMENT
        assert self.cache.tail == (self.model.pages * ALIGNMENT, self.model.end * ALIGNMENT)
        assert self.cache.tail_is_free == (not self.model.beyond())
        assert all(item.entry.offset % ALIGNMENT == 0 for item in self.model.live)
        assert self.cache.ready_objects == len(self.model.ready())
        assert self.cache.objects_in_use == (len(self._leased()), len(self._written()))
        assert self.cache._in_use == {item.entry for item in self.model.live if item.in_use}
        assert self.cache._in_use_bytes == sum(item.entry.size for item in self.model.live if item.in_use)
        counters = self.cache.counters
        assert counters.stored_objects - counters.evicted_objects - counters.cleared_objects == self.cache.ready_objects

    @invariant()
    def a_walk_meets_everyone_who_is_visible_in_the_order_of_the_places(self) -> None:
        expected = sorted((item.entry for item in self._visible()), key=_offset)
        assert self.cache.page(0, len(ALL_KEYS) + 1) == (expected, None)
        for number, entry in enumerate(expected, 1):
            page = self.cache.page(entry.offset, 1)
            assert (page.members, page.next_place) == ([entry], self._next_place(entry.offset))
            assert self.cache.page(entry.offset + 1, 1).members == expected[number : number + 1]

    @invariant()
    def the_reason_of_a_miss_is_the_true_one(self) -> None:
        for key in ALL_KEYS:
            if self.cache.find(key_bytes(key)) is None:
                assert self.cache.miss_reason(key_bytes(key)) == self.model.reason(key)

    @invariant()
    def free_space_is_one_range_between_slots(self) -> None:
        free = self.model.free_pages()
        for pages in range(1, self.model.pages + 1):
            offset = self.cache._allocator.allocate(pages * ALIGNMENT)
            assert (offset is not None) == any(windows(free, pages))
            if offset is not None:
                self.cache._allocator.free(offset, pages * ALIGNMENT)

    @invariant()
    def every_byte_is_where_it_was_written(self) -> None:
        for item in self.model.live:
            offset = item.entry.offset
            assert self.arena[offset : offset + len(item.data)] == item.data, item.key

    @invariant()
    def exactly_what_was_committed_is_found(self) -> None:
        for key in ALL_KEYS:
            expected, found = self.model.visible(key), self.cache.find(key_bytes(key))
            assert self.cache.holds(key_bytes(key)) == (expected is not None)
            assert found is (expected.entry if expected is not None and expected.committed else None)

    @invariant()
    def the_order_of_eviction_is_right(self) -> None:
        self.model.check_order(self._ranked())

    def teardown(self) -> None:
        """Everything can be let go, and then all of L1 is free."""
        if not hasattr(self, "model"):
            return
        self.cache.clear()
        for item in [item for item in self.model.live if item.in_use]:
            if item.committed:
                if item.leases:
                    self.cache.release(item.entry, item.leases)
                for _ in range(item.borrowers):
                    self.cache.give_back(item.entry)
            else:
                self.cache.commit(item.entry)
            assert self.cache.find(key_bytes(item.key)) is None
        assert (self.cache.used, self.cache.objects_in_use, self.cache.ready_objects) == (0, (0, 0), 0)

    # Each step, with its check

    def _evict_beyond(self, place: int, count: int) -> int | None:
        """Looks at the next objects from a place on; returns where to go on."""
        following = sorted((item for item in self._visible() if item.entry.offset >= place), key=_item_offset)[:count]
        expected = [item for item in following if item in self.model.beyond()]
        page = self.cache.evict_beyond(place, count)
        assert [entry.key for entry in page.members] == [key_bytes(item.key) for item in expected]
        for item in expected:
            self.model.hide(item, "evicted")
        return page.next_place

    def _reserve(self, key: Key, size: int) -> Item | None:
        pages = -(-size // ALIGNMENT)
        self.the_order_of_eviction_is_right()
        before = self._state()
        if not self.model.can_make_room(pages):
            with pytest.raises(NoSpaceError):
                self.cache.reserve(key_bytes(key), size, NAMESPACE, 0.0)
            assert self._state() == before, "a refusal has changed something"
            return None
        plan = self.model.cheapest_eviction(pages)
        there = self.model.evictable()
        entry = self.cache.reserve(key_bytes(key), size, NAMESPACE, 0.0)
        gone = [item for item in there if self.cache.find(key_bytes(item.key)) is not item.entry]
        item = Item(key, entry, size, bytearray())
        self._check_plan(plan, gone, item)
        for each in gone:
            self._check_order(each, there, gone)
            self.model.hide(each, "evicted")
        item.data[:] = self.arena[entry.offset : entry.offset + size]
        self.model.live.append(item)
        self.slots_are_apart_and_counted()
        return item

    def _check_plan(self, plan: tuple[list[Item], int] | None, gone: list[Item], new: Item) -> None:
        """Nothing goes in vain. `plan`: what the order allows to go, and how much of it has to."""
        cost = sum(len(item.pages) for item in gone)
        if plan is None:
            assert all(set(item.pages) & set(new.pages) for item in gone), "evicted what lies elsewhere"
        elif self.model.order.is_exact:
            assert set(gone) <= set(plan[0]), "evicted something else than what was to go first"
            assert cost == plan[1], "evicted more than needed"
        elif self.uniform and not self.changes:
            assert len(gone) <= 1, "evicted more than needed"
        assert cost == 0 or plan is None or plan[1], "evicted something where there was room"

    def _check_order(self, gone: Item, there: list[Item], all_gone: list[Item]) -> None:
        """Among objects of one size, a chunk never goes before one that is worth nothing without it.

        Only LRU knows that of what was stored apart; and what lies behind the capacity is not asked to go.
        """
        if self.uniform and not self.changes and self.model.order.policy == "lru":
            chain, index = gone.key
            for other in there:
                if other not in all_gone:
                    assert other.key[0] != chain or other.key[1] < index, "a prefix was evicted before its suffix"

    def _commit(self, item: Item) -> None:
        self._write(item, 1.0)
        self.cache.commit(item.entry)
        self.model.stored(item)

    def _write(self, item: Item, part: float) -> None:
        end = int(len(item.data) * part)
        item.data[:end] = self.random.randbytes(end)
        self.arena[item.entry.offset : item.entry.offset + end] = item.data[:end]

    def _lease(self, item: Item, count: int) -> None:
        self.cache.lease(item.entry, count)
        if not item.leases:
            self.model.order.hold(item.key)
        item.leases += count

    def _release(self, item: Item, count: int) -> None:
        self.cache.release(item.entry, count)
        item.leases -= count
        if not item.leases:
            self.model.unused(item)

    def _use_prefix(self, key: Key) -> None:
        there = [item for each in _prefix(key) if (item := self.model.visible(each)) and item.committed]
        self.cache.use([item.entry for item in there], 0.0)
        self.model.order.touch([item.key for item in there])

    def _touch_prefix(self, key: Key) -> None:
        prefix = _prefix(key)
        self.cache.touch([key_bytes(each) for each in prefix])
        self.model.order.touch(prefix)

    def _ranked(self) -> list[Key]:
        partitions = self.cache._partitions
        return [key_of(entry.key) for entry in partitions.victims(partitions.of(""))]

    def _next_place(self, offset: int) -> int | None:
        """The address of the next object that occupies a slot, doomed or not."""
        return min((item.entry.offset for item in self.model.live if item.entry.offset > offset), default=None)

    def _state(self) -> object:
        """All of it, to be compared; entries are themselves."""
        cache = self.cache
        uses = {(entry, entry.leases, entry.borrowers) for entry in cache._entries.values()}
        entries = {(entry, entry.ready, entry.visible) for entry in cache._entries.values()} | uses
        scalars = (cache._leased, cache._borrowed, cache._ready, cache._ready_bytes, astuple(cache.counters))
        ranked = self._ranked() if self.model.order.is_exact else None
        usage = (cache._partitions.usage, cache._partitions._shared.used)
        return entries, set(cache._in_use), scalars, ranked, deepcopy((usage, vars(cache._allocator)))

    def _written(self) -> list[Item]:
        return [item for item in self.model.live if not item.committed]

    def _leased(self) -> list[Item]:
        return [item for item in self.model.live if item.leases]

    def _borrowed(self) -> list[Item]:
        return [item for item in self.model.live if item.borrowers]

    def _visible(self) -> list[Item]:
        return [item for item in self.model.live if item.visible]

    @staticmethod
    def _pick(items: list[Item], pick: int) -> Item:
        return items[pick % len(items)]


def _prefix(key: Key) -> list[Key]:
    """Last chunk first."""
    return [(key[0], index) for index in range(key[1], -1, -1)]


def _offset(entry: Entry) -> int:
    return entry.offset


def _item_offset(item: Item) -> int:
    return item.entry.offset


TestL1Cache = L1CacheMachine.TestCase
TestL1Cache.settings = budget(examples=1300, steps=40)
