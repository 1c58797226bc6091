"""Who makes room for whom, and what ends an object. The state machine in `tests/model` covers the interleavings."""

from __future__ import annotations

import pytest

from engine.keys import namespace
from engine.l1.cache import ALIGNMENT, L1Cache, NoSpaceError
from engine.l1.entry import Entry
from engine.l1.policies.lru_policy import Policy
from engine.status import Cleared, MissReason

SLOT = ALIGNMENT
NAMESPACE = namespace("m", 1, 0, bytes(16), "")


def cache_of(slots: int) -> L1Cache:
    return L1Cache(slots * SLOT, Policy)


def put(cache: L1Cache, key: str, slots: int = 1) -> Entry:
    """A ready object."""
    entry = cache.reserve(key.encode(), slots * SLOT, NAMESPACE, 0.0)
    cache.commit(entry)
    return entry


def names(cache: L1Cache, keys: str) -> str:
    """Those of the keys that can be found."""
    return "".join(key for key in keys if cache.find(key.encode()))


def use(cache: L1Cache, keys: str) -> None:
    """As a request does, last chunk first."""
    entries = [entry for key in keys if (entry := cache.find(key.encode()))]
    cache.use(entries, 0.0)


def test_capacity_is_whole_slots() -> None:
    assert L1Cache(10 * SLOT - 1, Policy).capacity == 9 * SLOT


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


def reserved(cache: L1Cache, key: str, slots: int = 1) -> Entry:
    """An object that is being written."""
    return cache.reserve(key.encode(), slots * SLOT, NAMESPACE, 0.0)


def present(cache: L1Cache) -> str:
    """Everyone that a walk over L1 meets."""
    page = cache.page(0, 99)
    assert page.next_place is None
    return b"".join(entry.key for entry in page.members).decode()


class TestPages:
    def test_they_have_what_is_there_or_being_written(self) -> None:
        cache = cache_of(3)
        put(cache, "a")
        written = reserved(cache, "b")
        put(cache, "c")
        assert present(cache) == "abc"
        cache.abort(written)
        assert present(cache) == "ac"

    @pytest.mark.parametrize("way", ["doomed", "doomed in use", "evicted"])
    def test_they_do_not_have_what_cannot_be_found_any_more(self, way: str) -> None:
        cache = cache_of(3)
        entries = [put(cache, key) for key in "abc"]
        if way == "evicted":
            put(cache, "d", 1)
            assert present(cache) == "dbc"
            return
        if way == "doomed in use":
            cache.lease(entries[0])
        cache.doom(entries[0], "cleared")
        assert present(cache) == "bc"

    def test_after_a_clear_they_are_empty(self) -> None:
        cache = cache_of(3)
        leased = put(cache, "a")
        put(cache, "b")
        cache.lease(leased)
        cache.clear()
        assert present(cache) == ""
        cache.release(leased)
        put(cache, "c")
        assert present(cache) == "c"

    def test_a_walk_goes_on_at_the_address_that_it_was_told_whatever_came_and_went(self) -> None:
        cache = cache_of(7)
        entries = {key: put(cache, key, 2 if key == "b" else 1) for key in "abcde"}
        first = cache.page(0, 2)
        assert ([entry.key for entry in first.members], first.next_place) == ([b"a", b"b"], 3 * SLOT)
        for key in "ac":
            cache.doom(entries[key], "cleared")
        put(cache, "f")
        put(cache, "g")
        assert first.next_place is not None
        rest = cache.page(first.next_place, 2)
        assert ([entry.key for entry in rest.members], rest.next_place) == ([b"g", b"d"], 5 * SLOT)
        assert [entry.key for entry in cache.page(5 * SLOT, 2).members] == [b"e"]
        assert cache.page(cache.end, 2).members == []

    def test_a_page_that_ends_with_the_last_object_is_the_last(self) -> None:
        cache = cache_of(5)
        put(cache, "a")
        put(cache, "b")
        assert cache.page(0, 1).next_place == SLOT
        assert cache.page(0, 2).next_place is None

    def test_the_epoch_tells_what_was_reserved_after_a_moment(self) -> None:
        cache = cache_of(3)
        before = put(cache, "a")
        moment = cache.next_epoch()
        after = reserved(cache, "b")
        assert before.epoch < moment <= after.epoch < cache.next_epoch()


class TestMissReason:
    def test_of_what_is_written_now_it_says_so_whatever_was_before(self) -> None:
        cache = cache_of(1)
        put(cache, "a")
        put(cache, "b")
        written = reserved(cache, "a")
        assert cache.miss_reason(b"a") == "being_written"
        cache.abort(written)
        assert cache.miss_reason(b"a") == "evicted"

    def test_what_was_given_up_was_never_stored(self) -> None:
        cache = cache_of(1)
        cache.abort(reserved(cache, "a"))
        assert cache.miss_reason(b"a") == "never_stored"

    @pytest.mark.parametrize("reason", ["evicted", "expired", "cleared", "quarantined"])
    @pytest.mark.parametrize("state", ["idle", "leased", "being written"])
    def test_what_was_doomed_says_why_also_when_its_last_user_has_left(self, reason: MissReason, state: str) -> None:
        cache = cache_of(1)
        entry = reserved(cache, "a") if state == "being written" else put(cache, "a")
        if state == "leased":
            cache.lease(entry)
        cache.doom(entry, reason)
        cache.doom(entry, "evicted")
        assert cache.miss_reason(b"a") == reason
        if state == "leased":
            cache.release(entry)
        elif state == "being written":
            cache.commit(entry)
        assert (cache.miss_reason(b"a"), cache.used) == (reason, 0)

    def test_a_clear_tells_of_what_was_there_and_of_what_was_being_written(self) -> None:
        cache = cache_of(3)
        put(cache, "x", 3)
        put(cache, "a")
        put(cache, "b")
        written = reserved(cache, "x")
        cache.clear()
        assert [cache.miss_reason(key) for key in (b"a", b"b", b"x")] == ["cleared"] * 3, "x was evicted before"
        cache.commit(written)
        assert cache.miss_reason(b"x") == "cleared"

    def test_what_is_stored_again_after_a_clear_and_evicted_was_evicted(self) -> None:
        cache = cache_of(1)
        put(cache, "a")
        cache.clear()
        put(cache, "a")
        put(cache, "b")
        assert cache.miss_reason(b"a") == "evicted"
        cache.clear()
        assert [cache.miss_reason(key) for key in (b"a", b"b")] == ["evicted", "cleared"]

    def test_what_found_no_room_was_refused_until_it_is_stored(self) -> None:
        cache = cache_of(1)
        cache.refuse([b"a", b"b"], "fragmented")
        assert cache.counters.refused_objects == {"in_use": 0, "fragmented": 2, "quota": 0}
        assert cache.miss_reason(b"a") == "refused"
        cache.clear()
        assert cache.miss_reason(b"a") == "refused"
        put(cache, "a")
        cache.clear()
        assert [cache.miss_reason(key) for key in (b"a", b"b")] == ["cleared", "refused"]


class TestShrinking:
    def test_nothing_new_is_put_behind_the_capacity(self) -> None:
        cache = cache_of(4)
        cache.set_capacity(2 * SLOT + 1)
        assert cache.capacity == 2 * SLOT
        for key in "abc":
            assert put(cache, key).offset < 2 * SLOT
        assert names(cache, "abc") == "bc"
        with pytest.raises(NoSpaceError):
            put(cache, "d", 3)

    def test_room_is_made_below_the_capacity_only(self) -> None:
        """a and b are the oldest, and lie behind it."""
        cache = cache_of(4)
        entries = {key: put(cache, key) for key in "cdab"}
        for key in "cd":
            cache.touch([key.encode()])
        assert [key for key, entry in entries.items() if entry.offset >= 2 * SLOT] == ["a", "b"]
        cache.set_capacity(2 * SLOT)
        put(cache, "e")
        assert names(cache, "abcde") == "abde"

    def test_one_that_lies_across_the_capacity_makes_room_when_nothing_else_does(self) -> None:
        cache = cache_of(3)
        put(cache, "b")
        put(cache, "a", 2)
        use(cache, "b")
        cache.set_capacity(2 * SLOT)
        put(cache, "c")
        assert names(cache, "abc") == "ac", "a goes by itself"
        held = cache.find(b"c")
        assert held is not None
        cache.lease(held)
        assert put(cache, "d").offset == SLOT
        assert names(cache, "acd") == "cd"

    def test_neighbours_behind_the_capacity_make_no_room(self) -> None:
        """b is the only one that could go, and there is one page between a and the capacity."""
        cache = cache_of(4)
        held, _, _ = (put(cache, key, slots) for key, slots in (("a", 1), ("b", 1), ("c", 2)))
        cache.lease(held)
        cache.set_capacity(2 * SLOT)
        with pytest.raises(NoSpaceError):
            put(cache, "d", 2)
        assert names(cache, "abc") == "abc"

    def test_what_lies_behind_it_is_evicted_page_by_page(self) -> None:
        cache = cache_of(6)
        for key in "abcde":
            put(cache, key)
        cache.set_capacity(SLOT)
        first = cache.evict_beyond(0, 2)
        assert ([entry.key for entry in first.members], first.next_place) == ([b"b"], 2 * SLOT)
        assert names(cache, "abcde") == "acde"
        rest = cache.evict_beyond(2 * SLOT, 9)
        assert ([entry.key for entry in rest.members], rest.next_place) == ([b"c", b"d", b"e"], None)
        assert (names(cache, "abcde"), cache.miss_reason(b"d"), cache.used) == ("a", "evicted", SLOT)
        assert (cache.counters.evicted_objects, cache.counters.evicted_bytes) == (4, 4 * SLOT)
        assert cache.tail_is_free

    def test_one_that_lies_across_it_goes_too(self) -> None:
        cache = cache_of(3)
        put(cache, "a", 3)
        cache.set_capacity(2 * SLOT)
        assert not cache.tail_is_free
        cache.evict_beyond(0, 1)
        assert cache.tail_is_free

    def test_what_is_in_use_there_ends_with_its_last_user(self) -> None:
        cache = cache_of(3)
        put(cache, "a")
        leased, written = put(cache, "b"), reserved(cache, "c")
        cache.lease(leased)
        cache.set_capacity(SLOT)
        cache.evict_beyond(0, 3)
        assert names(cache, "abc") == "a"
        assert cache.used == 3 * SLOT
        cache.release(leased)
        assert not cache.tail_is_free
        cache.commit(written)
        assert cache.tail_is_free
        assert (cache.used, names(cache, "abc")) == (SLOT, "a")

    def test_what_was_not_there_yet_does_not_count_as_evicted(self) -> None:
        cache = cache_of(2)
        written = reserved(cache, "a")
        cache.set_capacity(0)
        assert cache.evict_beyond(0, 1).members == [written]
        assert (cache.counters.evicted_objects, cache.counters.evicted_bytes) == (0, 0)

    def test_what_was_doomed_before_keeps_the_tail_too(self) -> None:
        cache = cache_of(1)
        leased = put(cache, "a")
        cache.lease(leased)
        cache.clear()
        cache.set_capacity(0)
        assert cache.evict_beyond(0, 1).members == []
        assert not cache.tail_is_free
        cache.release(leased)
        assert cache.tail_is_free

    def test_a_tail_that_is_cut_off_is_gone_until_the_capacity_is_raised(self) -> None:
        cache = cache_of(3)
        cache.set_capacity(SLOT)
        assert cache.tail == (SLOT, 3 * SLOT)
        cache.cut_tail()
        assert cache.tail == (SLOT, SLOT)
        with pytest.raises(NoSpaceError):
            put(cache, "a", 2)
        cache.set_capacity(2 * SLOT)
        put(cache, "a", 2)

    def test_it_can_be_taken_back_before_that(self) -> None:
        cache = cache_of(3)
        for key in "abc":
            put(cache, key)
        cache.set_capacity(SLOT)
        cache.evict_beyond(SLOT, 1)
        cache.set_capacity(3 * SLOT)
        assert names(cache, "abc") == "ac"
        put(cache, "d")
        assert names(cache, "acd") == "acd"
