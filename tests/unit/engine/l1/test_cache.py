"""Who makes room for whom, and what ends an object. The state machine in `tests/model` covers the interleavings."""

from __future__ import annotations

import pytest

from engine.keys import namespace
from engine.l1.cache import ALIGNMENT, Entry, L1Cache, NoSpaceError
from engine.l1.policies.lru_policy import Policy
from engine.status import Cleared

SLOT = ALIGNMENT
NAMESPACE = namespace("m", 1, 0, bytes(16), "")


def cache_of(slots: int) -> L1Cache:
    return L1Cache(slots * SLOT, Policy())


def put(cache: L1Cache, key: str, slots: int = 1) -> Entry:
    """A ready object."""
    entry = cache.reserve(key.encode(), slots * SLOT, NAMESPACE, 0.0)
    cache.commit(entry)
    return entry


def names(cache: L1Cache, keys: str) -> str:
    """Those of the keys that can be found."""
    return "".join(key for key in keys if cache.find(key.encode()))


def test_capacity_is_whole_slots() -> None:
    assert L1Cache(10 * SLOT - 1, Policy()).capacity == 9 * SLOT


@pytest.mark.parametrize(("size", "occupied"), [(1, SLOT), (SLOT, SLOT), (SLOT + 1, 2 * SLOT)])
def test_an_object_occupies_whole_slots(size: int, occupied: int) -> None:
    cache = cache_of(4)
    assert cache.reserve(b"a", size, NAMESPACE, 0.0).size == occupied
    assert cache.used == occupied


def test_what_is_being_written_is_held_but_not_found() -> None:
    cache = cache_of(2)
    entry = cache.reserve(b"a", SLOT, NAMESPACE, 0.0)
    assert cache.holds(b"a")
    assert cache.find(b"a") is None
    cache.commit(entry)
    assert cache.find(b"a") is entry


def test_what_was_not_written_leaves_nothing() -> None:
    cache = cache_of(1)
    cache.abort(cache.reserve(b"a", SLOT, NAMESPACE, 0.0))
    assert not cache.holds(b"a")
    assert cache.used == 0
    put(cache, "b")


def test_the_least_recently_used_makes_room() -> None:
    cache = cache_of(3)
    for key in "abc":
        put(cache, key)
    cache.touch([b"a"])
    put(cache, "d")
    assert names(cache, "abcd") == "acd"
    assert (cache.counters.evicted_objects, cache.counters.evicted_bytes) == (1, SLOT)


def test_what_is_leased_or_being_written_is_not_evicted() -> None:
    cache = cache_of(3)
    leased = put(cache, "a")
    cache.lease(leased)
    cache.reserve(b"b", SLOT, NAMESPACE, 0.0)
    put(cache, "c")
    put(cache, "d")
    assert names(cache, "acd") == "ad"
    cache.lease(cache.find(b"d") or leased)
    with pytest.raises(NoSpaceError):
        cache.reserve(b"e", SLOT, NAMESPACE, 0.0)


def test_when_no_room_can_be_made_nothing_is_evicted() -> None:
    cache = cache_of(4)
    for key in "abcd":
        put(cache, key)
    middle = cache.find(b"b")
    assert middle is not None
    cache.lease(middle)
    with pytest.raises(NoSpaceError):
        cache.reserve(b"e", 3 * SLOT, NAMESPACE, 0.0)
    assert names(cache, "abcd") == "abcd"
    assert cache.counters.evicted_objects == 0


def test_victims_that_are_apart_do_not_make_room_together() -> None:
    """a and c are the oldest, but only c and d are neighbours that can go."""
    cache = cache_of(4)
    for key in "abcd":
        put(cache, key)
    for key in (b"b", b"d"):
        cache.touch([key])
    held = cache.find(b"b")
    assert held is not None
    cache.lease(held)
    put(cache, "e", 2)
    assert names(cache, "abcde") == "abe"


def test_of_the_room_that_could_be_made_the_cheapest_part_is_taken() -> None:
    """In memory: a a c b and a free slot; oldest first: a, b, c. Only with c there is room for three, and then b, c and
    the free slot are enough."""
    cache = cache_of(5)
    put(cache, "a", 2)
    put(cache, "c")
    put(cache, "b")
    cache.touch([b"c"])
    put(cache, "d", 3)
    assert names(cache, "abcd") == "ad"


def test_an_object_larger_than_everything_is_refused_and_changes_nothing() -> None:
    cache = cache_of(2)
    put(cache, "a")
    with pytest.raises(NoSpaceError):
        cache.reserve(b"b", 3 * SLOT, NAMESPACE, 0.0)
    assert names(cache, "a") == "a"
    assert not cache.holds(b"b")


def test_a_lease_ends_with_its_last_release() -> None:
    cache = cache_of(1)
    entry = put(cache, "a")
    cache.lease(entry, 2)
    cache.release(entry)
    with pytest.raises(NoSpaceError):
        cache.reserve(b"b", SLOT, NAMESPACE, 0.0)
    cache.release(entry)
    cache.reserve(b"b", SLOT, NAMESPACE, 0.0)


def test_a_clear_makes_everything_invisible_and_frees_what_is_idle() -> None:
    cache = cache_of(4)
    leased, idle = put(cache, "a"), put(cache, "b", 2)
    cache.lease(leased)
    written = cache.reserve(b"c", SLOT, NAMESPACE, 0.0)
    assert cache.clear() == Cleared(2, 3 * SLOT)
    assert names(cache, "abc") == ""
    assert not cache.holds(b"c")
    assert cache.used == 2 * SLOT
    assert (cache.ready_objects, cache.counters.cleared_objects) == (0, 2)
    assert idle.offset not in (leased.offset, written.offset)


def test_what_is_in_use_during_a_clear_is_freed_by_its_last_user() -> None:
    cache = cache_of(2)
    leased = put(cache, "a")
    cache.lease(leased)
    written = cache.reserve(b"b", SLOT, NAMESPACE, 0.0)
    cache.clear()
    with pytest.raises(NoSpaceError):
        cache.reserve(b"c", SLOT, NAMESPACE, 0.0)
    cache.release(leased)
    assert cache.used == SLOT
    cache.commit(written)
    assert cache.used == 0
    assert names(cache, "ab") == ""
    assert cache.counters.stored_objects == 1


def test_a_cleared_object_can_be_stored_anew_beside_the_old_one() -> None:
    cache = cache_of(2)
    old = put(cache, "a")
    cache.lease(old)
    cache.clear()
    new = put(cache, "a")
    assert new.offset != old.offset
    cache.release(old)
    assert cache.find(b"a") is new
    assert cache.used == SLOT


def test_an_aborted_write_does_not_take_its_successor_along() -> None:
    cache = cache_of(2)
    old = cache.reserve(b"a", SLOT, NAMESPACE, 0.0)
    cache.doom(old, "cleared")
    new = put(cache, "a")
    cache.abort(old)
    assert cache.find(b"a") is new


def test_dooming_twice_is_dooming_once() -> None:
    cache = cache_of(2)
    entry = put(cache, "a")
    cache.lease(entry)
    cache.doom(entry, "cleared")
    cache.doom(entry, "cleared")
    assert cache.ready_objects == 0
    cache.release(entry)
    assert cache.used == 0


def test_the_counts_of_what_is_in_use() -> None:
    cache = cache_of(4)
    one = put(cache, "a")
    put(cache, "b")
    cache.reserve(b"c", SLOT, NAMESPACE, 0.0)
    cache.lease(one, 3)
    assert cache.objects_in_use == (1, 1)
    cache.release(one, 3)
    assert cache.objects_in_use == (0, 1)
