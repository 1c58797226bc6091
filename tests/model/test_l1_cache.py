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
from engine.l1.policies.lru_policy import Policy
from tests.model.budget import budget
from tests.model.naive_cache import Item, Key, NaiveCache, key_bytes, windows

CHAINS, CHAIN_LENGTH = 4, 3
CHUNKS = st.tuples(st.integers(0, CHAINS - 1), st.integers(0, CHAIN_LENGTH - 1))
PICK = st.integers(0, 1 << 16)
NAMESPACE = namespace("m", 1, 0, bytes(16), "")


class L1CacheMachine(RuleBasedStateMachine):
    """Objects of 1 to 3 pages come, are used and go. A use ends as the engine ends it: with a touch of the prefix."""

    @initialize(pages=st.integers(3, 14), spare=st.sampled_from([0, 1, 4095]), uniform=st.sampled_from([None, 1, 2, 3]))
    def start(self, pages: int, spare: int, uniform: int | None) -> None:
        self.policy = Policy()
        self.cache = L1Cache(pages * ALIGNMENT + spare, self.policy)
        self.arena = bytearray(pages * ALIGNMENT)
        self.model = NaiveCache(pages)
        self.uniform = uniform
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

    @precondition(lambda self: self._used_and_visible())
    @rule(pick=PICK)
    def doom(self, pick: int) -> None:
        item = self._pick(self._used_and_visible(), pick)
        self.cache.doom(item.entry, "cleared")
        self.cache.doom(item.entry, "cleared")
        self.model.hide(item)

    @rule(really=st.integers(0, 3))
    def clear(self, really: int) -> None:
        if really:
            return
        expected = [len(item.pages) * ALIGNMENT for item in self.model.ready()]
        cleared = self.cache.clear()
        assert (cleared.objects, cleared.bytes) == (len(expected), sum(expected))
        for item in [item for item in self.model.live if item.visible]:
            self.model.hide(item)

    # What always holds

    @invariant()
    def slots_are_apart_and_counted(self) -> None:
        taken = [page for item in self.model.live for page in item.pages]
        assert len(taken) == len(set(taken)), "two objects share a page"
        assert all(0 <= page < self.model.pages for page in taken)
        assert self.cache.used == len(taken) * ALIGNMENT <= self.cache.capacity
        assert all(item.entry.offset % ALIGNMENT == 0 for item in self.model.live)
        assert self.cache.ready_objects == len(self.model.ready())
        assert self.cache.objects_in_use == (len(self._leased()), len(self._written()))

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
        for chain in range(CHAINS):
            for index in range(CHAIN_LENGTH):
                key = (chain, index)
                expected, found = self.model.visible(key), self.cache.find(key_bytes(key))
                assert self.cache.holds(key_bytes(key)) == (expected is not None)
                assert found is (expected.entry if expected is not None and expected.committed else None)

    @invariant()
    def policy_ranks_what_is_evictable_by_last_use(self) -> None:
        assert list(self.policy.victims()) == [key_bytes(key) for key in self.model.recency]

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

    def _reserve(self, key: Key, size: int) -> Item | None:
        pages = -(-size // ALIGNMENT)
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
            self.model.hide(item)
        item = Item(key, entry, size, bytearray())
        item.data[:] = self.arena[entry.offset : entry.offset + size]
        self.model.live.append(item)
        self.slots_are_apart_and_counted()
        return item

    def _check_order(self, gone: Item, there: list[Item], all_gone: list[Item]) -> None:
        """Among objects of one size, a chunk never goes before one that is worth nothing without it."""
        if self.uniform:
            chain, index = gone.key
            for other in there:
                if other not in all_gone:
                    assert other.key[0] != chain or other.key[1] < index, "a prefix was evicted before its suffix"

    def _commit(self, item: Item) -> None:
        self._write(item, 1.0)
        self.cache.commit(item.entry)
        item.committed = True
        self.model.unused(item)

    def _write(self, item: Item, part: float) -> None:
        end = int(len(item.data) * part)
        item.data[:end] = self.random.randbytes(end)
        self.arena[item.entry.offset : item.entry.offset + end] = item.data[:end]

    def _lease(self, item: Item, count: int) -> None:
        self.cache.lease(item.entry, count)
        item.leases += count
        if item.key in self.model.recency:
            self.model.recency.remove(item.key)

    def _release(self, item: Item, count: int) -> None:
        self.cache.release(item.entry, count)
        item.leases -= count
        if not item.leases:
            self.model.unused(item)

    def _touch_prefix(self, key: Key) -> None:
        prefix = [(key[0], index) for index in range(key[1], -1, -1)]
        self.cache.touch([key_bytes(each) for each in prefix])
        self.model.touch(prefix)

    def _state(self) -> object:
        """All of it, to be compared; entries are themselves."""
        cache = self.cache
        entries = {(entry, entry.leases, entry.ready, entry.visible) for entry in cache._entries.values()}
        scalars = (cache._leased, cache._ready, cache._ready_bytes, astuple(cache.counters))
        return (entries, set(cache._in_use), scalars, list(self.policy.victims()), deepcopy(vars(cache._allocator)))

    def _written(self) -> list[Item]:
        return [item for item in self.model.live if not item.committed]

    def _leased(self) -> list[Item]:
        return [item for item in self.model.live if item.leases]

    def _used_and_visible(self) -> list[Item]:
        return [item for item in self.model.live if item.visible and item.in_use]

    @staticmethod
    def _pick(items: list[Item], pick: int) -> Item:
        return items[pick % len(items)]


TestL1Cache = L1CacheMachine.TestCase
TestL1Cache.settings = budget(examples=1300, steps=40)
