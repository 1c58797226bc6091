"""A change of the eviction policy costs no object its place: what is cold goes first, what is used meanwhile last."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from engine.discovery import policy_maker, policy_names
from engine.keys import namespace
from engine.l1.cache import ALIGNMENT, L1Cache
from engine.l1.entry import Entry
from engine.l1.partitions import Quota

SLOT = ALIGNMENT
PAIRS = list(product(policy_names(), policy_names()))


class Changing:
    """An L1 of 12 slots, with objects named by letters."""

    def __init__(self, policy: str) -> None:
        self.cache = L1Cache(12 * SLOT, policy_maker(policy))

    def put(self, keys: str, salt: str = "") -> None:
        for key in keys:
            made = self.cache.reserve(key.encode(), SLOT, namespace("m", 1, 0, bytes(16), salt), 0.0)
            self.cache.commit(made)

    def entry(self, key: str) -> Entry:
        found = self.cache.find(key.encode())
        assert found is not None
        return found

    def lease(self, keys: str) -> None:
        for key in keys:
            self.cache.lease(self.entry(key))

    def release(self, keys: str) -> None:
        for key in keys:
            self.cache.release(self.entry(key))

    def use(self, keys: str) -> None:
        """As a request does."""
        self.lease(keys)
        self.cache.use([self.entry(key) for key in keys], 1.0)
        self.release(keys)
        self.cache.touch([key.encode() for key in keys])

    def change(self, policy: str) -> None:
        self.cache.change_policy(policy_maker(policy))

    def hand_over(self, count: int) -> bool:
        ended = self.cache.hand_over(count)
        if ended:
            self.cache.end_move()
        return ended

    def finish(self) -> None:
        for _ in range(100):
            if self.hand_over(2):
                return
        raise AssertionError("it does not end")

    def order(self, salt: str = "") -> str:
        """What may be evicted for another object of a tenant, first to last."""
        partitions = self.cache._partitions
        return b"".join(entry.key for entry in partitions.victims(partitions.of(salt))).decode()

    @property
    def policies(self) -> set[str]:
        """Those that rank the objects."""
        entries = self.cache.page(0, 99).members
        return {type(entry.queue.owner).__module__.rsplit(".", 1)[1] for entry in entries if entry.queue}


@pytest.fixture(params=PAIRS, ids=" to ".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def changing(pair: tuple[str, str]) -> Iterator[Changing]:
    """From the first to the second, with a to f, of which e is leased."""
    made = Changing(pair[0])
    made.put("abcdef")
    made.lease("e")
    made.change(pair[1])
    yield made
    made.finish()
    assert made.policies <= {f"{pair[1]}_policy"}, "somebody is still ranked by another policy"


def test_the_order_stays_at_every_moment(changing: Changing) -> None:
    assert changing.order() == "abcdf"
    for _ in range(2):
        assert not changing.hand_over(2)
        assert changing.order() == "abcdf"
    assert changing.hand_over(2)
    assert changing.order() == "abcdf"


@pytest.mark.parametrize("old", ["lru", "fifo"])
@pytest.mark.parametrize("new", policy_names())
def test_also_one_that_uses_have_made(old: str, new: str) -> None:
    changing = Changing(old)
    changing.put("abcdef")
    changing.use("db")
    changing.use("f")
    order = changing.order()
    changing.change(new)
    while not changing.hand_over(1):
        assert changing.order() == order
    assert changing.order() == order


@pytest.mark.parametrize("moved", [0, 2, 4])
def test_what_is_stored_meanwhile_goes_after_all_that_was_there(changing: Changing, moved: int) -> None:
    changing.hand_over(moved)
    changing.put("yx")
    assert changing.order() == "abcdfyx"
    changing.finish()
    assert changing.order() == "abcdfyx"


@pytest.mark.parametrize("moved", [0, 2, 4])
def test_what_is_used_meanwhile_goes_after_all_that_is_not(changing: Changing, moved: int) -> None:
    changing.hand_over(moved)
    changing.use("db")
    if moved == 0:
        assert changing.order() == "acfdb"
    assert sorted(changing.order()) == [*"abcdf"]
    changing.finish()
    assert [key for key in changing.order() if key in "acf"] == [*"acf"]


@pytest.mark.parametrize("new", ["lru", "arc", "hit_density"])
@pytest.mark.parametrize("old", policy_names())
@pytest.mark.parametrize("moved", [0, 2, 4])
def test_where_the_new_one_counts_uses_it_does_also_when_it_has_ended(old: str, new: str, moved: int) -> None:
    changing = Changing(old)
    changing.put("abcdef")
    changing.change(new)
    changing.hand_over(moved)
    changing.use("db")
    changing.finish()
    assert changing.order() == "acefdb"


def test_what_was_leased_before_it_comes_last_when_it_is_let_go_meanwhile(changing: Changing) -> None:
    changing.hand_over(2)
    changing.release("e")
    changing.use("e")
    assert changing.order() == "abcdfe"


def test_what_is_leased_for_longer_than_it_lasts_is_not_lost(changing: Changing) -> None:
    changing.lease("c")
    changing.finish()
    assert changing.order() == "abdf"
    changing.release("ec")
    assert sorted(changing.order()) == [*"abcdef"]


def test_what_goes_meanwhile_is_not_moved(changing: Changing) -> None:
    changing.hand_over(2)
    changing.put("x")
    for key in "adx":
        changing.cache.doom(changing.entry(key), "cleared")
    written = changing.cache.reserve(b"w", SLOT, namespace("m", 1, 0, bytes(16), ""), 0.0)
    changing.cache.doom(changing.entry("e"), "cleared")
    changing.cache.abort(written)
    assert changing.order() == "bcf"
    changing.finish()
    assert changing.order() == "bcf"


def test_what_is_being_written_arrives_at_the_new_one(changing: Changing) -> None:
    space = namespace("m", 1, 0, bytes(16), "")
    before = changing.cache.reserve(b"w", SLOT, space, 0.0)
    changing.hand_over(3)
    changing.cache.commit(before)
    changing.finish()
    assert sorted(changing.order()) == [*"abcdfw"]


def test_it_costs_nobody_and_room_is_made_in_the_same_order(changing: Changing) -> None:
    changing.hand_over(3)
    changing.put("ghijkl")
    changing.put("mn")
    assert changing.order()[:3] == "cdf"
    assert changing.cache.counters.evicted_objects == 2


def test_another_one_on_top_keeps_the_order(changing: Changing, pair: tuple[str, str]) -> None:
    """Except that hit density hands over class by class."""
    expected = "abcxdfy" if pair[1] == "hit_density" else "abcdfxy"
    changing.hand_over(2)
    changing.put("x")
    changing.change(pair[0])
    assert changing.order() == "abcdfx"
    changing.hand_over(3)
    changing.put("y")
    assert changing.order() == expected
    changing.finish()
    assert changing.order() == expected
    changing.change(pair[1])


def test_a_clear_leaves_nothing_to_hand_over(changing: Changing) -> None:
    changing.hand_over(2)
    changing.cache.clear()
    assert changing.hand_over(0)
    changing.put("ba")
    assert changing.order() == "ba"
    changing.change("lru")
    changing.finish()
    assert changing.order() == "ba"
    changing.change("fifo")
    changing.cache.clear()


def test_it_ends_however_much_is_used_meanwhile(changing: Changing) -> None:
    for _ in range(100):
        if changing.hand_over(2):
            break
        changing.use("abcdf")
    else:
        raise AssertionError("it does not end")
    assert sorted(changing.order()) == [*"abcdf"]


@pytest.mark.parametrize("new", policy_names())
def test_each_tenants_objects_stay_apart_and_in_their_order(new: str) -> None:
    changing = Changing("lru")
    changing.cache.set_quota("s", Quota(limit=3 * SLOT))
    changing.put("ab")
    changing.put("xyz", "s")
    changing.lease("b")
    changing.change(new)
    own = changing.cache._partitions.of("s")
    assert own.policy.capacity == 3 * SLOT
    assert [entry.key for entry in own.victims()] == [b"x", b"y", b"z"]
    changing.hand_over(2)
    changing.put("w", "s")
    assert [entry.key for entry in own.victims()] == [b"y", b"z", b"w"]
    changing.finish()
    assert [entry.key for entry in own.victims()] == [b"y", b"z", b"w"]
    assert changing.policies == {f"{new}_policy"}
    changing.release("b")
    assert sorted(changing.order()) == [*"abwyz"]


@pytest.mark.parametrize("name", policy_names())
def test_without_a_change_there_is_nothing_to_hand_over(name: str) -> None:
    assert Changing(name).cache.hand_over(0)
