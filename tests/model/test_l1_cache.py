"""`L1Cache` against a naive cache that knows every byte."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import astuple
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.keys import namespace
from engine.l1.cache import ALIGNMENT, L1Cache, NoSpaceError
from engine.l1.policies import fifo_policy, lru_policy
from engine.status import MissReason
from tests.model.budget import budget
from tests.model.naive_cache import Item, Key, NaiveCache, key_bytes, key_of, windows

CHAINS, CHAIN_LENGTH = 4, 3
CHUNKS = st.tuples(st.integers(0, CHAINS - 1), st.integers(0, CHAIN_LENGTH - 1))
ALL_KEYS = [(chain, index) for chain in range(CHAINS) for index in range(CHAIN_LENGTH)]
PICK = st.integers(0, 1 << 16)
NAMESPACE = namespace("m", 1, 0, bytes(16), "")
MOST_PAGES = 16
POLICIES = {"fifo": fifo_policy.Policy, "lru": lru_policy.Policy}
CHANGES = st.sampled_from([(), (), ("size",), ("policy",), ("size", "policy")])
"""What operators change in one run."""


class L1CacheMachine(RuleBasedStateMachine):
    """Objects of 1 to 3 pages come, are used and go. A use ends as the engine ends it: with a touch of the prefix."""

    @initialize(
        pages=st.integers(3, 14),
        spare=st.sampled_from([0, 1, 4095]),
        uniform=st.sampled_from([None, 1, 2, 3]),
        changes=CHANGES,
    )
    def start(self, pages: int, spare: int, uniform: int | None, changes: tuple[str, ...]) -> None:
        self.cache = L1Cache(pages * ALIGNMENT + spare, lru_policy.Policy())
        self.arena = bytearray(MOST_PAGES * ALIGNMENT)
        self.model = NaiveCache(pages)
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
                self.cache.refuse([key_bytes(each) for each in refused])
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
        self._touch_prefix(key)

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
        for seat in range(0, self.cache.seats if pick % 4 else 1, part):
            self._evict_beyond(seat, part)

    @precondition(lambda self: self.model.beyond())
    @rule(seat=st.integers(0, CHAINS * CHAIN_LENGTH), count=st.integers(1, CHAINS * CHAIN_LENGTH))
    def evict_beyond(self, seat: int, count: int) -> None:
        self._evict_beyond(seat, count)

    @precondition(lambda self: self.model.end > self.model.pages and not self.model.beyond())
    @rule()
    def cut_tail(self) -> None:
        """Its memory is given back, and comes back empty."""
        start, end = self.cache.tail
        self.arena[start:end] = bytes(end - start)
        self.cache.cut_tail()
        self.model.end = self.model.pages

    @precondition(lambda self: "policy" in self.changes)
    @rule(name=st.sampled_from([*POLICIES, *[None] * 6]))
    def change_policy(self, name: str | None) -> None:
        """Also while the last change has not ended."""
        if name is None:
            return
        self.cache.change_policy(POLICIES[name]())
        self.model.order.change(name, self.model.ranked)

    @precondition(lambda self: self.model.order.is_changing)
    @rule(count=st.sampled_from([1, 1, 1, 2, 4]))
    def hand_over(self, count: int) -> None:
        ended = self.cache.hand_over(count)
        self.the_order_of_eviction_is_right()
        if ended:
            policy = self.cache._policy
            assert type(policy) is POLICIES[self.model.order.policy]
            self.model.order.settle([key_of(key) for key in policy._order])

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
        counters = self.cache.counters
        assert counters.stored_objects - counters.evicted_objects - counters.cleared_objects == self.cache.ready_objects

    @invariant()
    def everyone_who_is_visible_has_a_seat(self) -> None:
        expected = {item.entry for item in self._visible()}
        assert len(expected) == len(self.cache.page(0, self.cache.seats).members)
        assert all(self.cache.page(entry.seat, 1).members == [entry] for entry in expected)

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
        self.model.check_order([key_of(key) for key in self.cache._policy.victims()])

    def teardown(self) -> None:
        """Everything can be let go, and then all of L1 is free."""
        if not hasattr(self, "model"):
            return
        self.cache.clear()
        for item in [item for item in self.model.live if item.in_use]:
            if item.committed:
                self.cache.release(item.entry, item.leases)
            else:
                self.cache.commit(item.entry)
            assert self.cache.find(key_bytes(item.key)) is None
        assert (self.cache.used, self.cache.objects_in_use, self.cache.ready_objects) == (0, (0, 0), 0)

    # Each step, with its check

    def _evict_beyond(self, seat: int, count: int) -> None:
        there = [item for item in self.model.beyond() if item.visible]
        expected = [item for item in there if seat <= item.entry.seat < seat + count]
        evicted = self.cache.evict_beyond(seat, count)
        assert {entry.key for entry in evicted} == {key_bytes(item.key) for item in expected}
        for item in expected:
            self.model.hide(item, "evicted")

    def _reserve(self, key: Key, size: int) -> Item | None:
        pages = -(-size // ALIGNMENT)
        self.the_order_of_eviction_is_right()
        plan = self.model.cheapest_eviction(pages)
        before = self._state()
        if plan is None:
            with pytest.raises(NoSpaceError):
                self.cache.reserve(key_bytes(key), size, NAMESPACE, 0.0)
            assert self._state() == before, "a refusal has changed something"
            return None
        candidates, cost = plan
        there = self.model.evictable()
        entry = self.cache.reserve(key_bytes(key), size, NAMESPACE, 0.0)
        gone = [item for item in there if self.cache.find(key_bytes(item.key)) is not item.entry]
        assert set(gone) <= set(candidates), "evicted something else than the least recently used"
        assert sum(len(item.pages) for item in gone) == cost, "evicted more than needed"
        for item in gone:
            self._check_order(item, there, gone)
            self.model.hide(item, "evicted")
        item = Item(key, entry, size, bytearray())
        item.data[:] = self.arena[entry.offset : entry.offset + size]
        self.model.live.append(item)
        self.slots_are_apart_and_counted()
        return item

    def _check_order(self, gone: Item, there: list[Item], all_gone: list[Item]) -> None:
        """Among objects of one size, a chunk never goes before one that is worth nothing without it.

        Only LRU knows that of what was stored apart; and what lies behind the capacity is not asked to go.
        """
        if self.uniform and not self.changes:
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

    def _touch_prefix(self, key: Key) -> None:
        prefix = [(key[0], index) for index in range(key[1], -1, -1)]
        self.cache.touch([key_bytes(each) for each in prefix])
        self.model.order.touch(prefix)

    def _state(self) -> object:
        """All of it, to be compared; entries are themselves."""
        cache = self.cache
        entries = {(entry, entry.leases, entry.ready, entry.visible) for entry in cache._entries.values()}
        scalars = (cache._leased, cache._ready, cache._ready_bytes, astuple(cache.counters))
        return (entries, set(cache._in_use), scalars, list(cache._policy.victims()), deepcopy(vars(cache._allocator)))

    def _written(self) -> list[Item]:
        return [item for item in self.model.live if not item.committed]

    def _leased(self) -> list[Item]:
        return [item for item in self.model.live if item.leases]

    def _visible(self) -> list[Item]:
        return [item for item in self.model.live if item.visible]

    @staticmethod
    def _pick(items: list[Item], pick: int) -> Item:
        return items[pick % len(items)]


TestL1Cache = L1CacheMachine.TestCase
TestL1Cache.settings = budget(examples=1300, steps=40)
