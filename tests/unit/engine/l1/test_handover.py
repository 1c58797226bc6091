"""A change of the eviction policy costs no object its place: what is cold goes first, what is used meanwhile last."""

from __future__ import annotations

from itertools import product

import pytest

from engine.l1.policies.base import EvictionPolicy
from engine.l1.policies.handover import Handover
from tests.unit.engine.l1.test_policies import NAMES, names, policy_of


def move(handover: Handover, count: int) -> bool:
    return handover.move(count, lambda key: 4096)


def finish(handover: Handover, count: int = 2) -> EvictionPolicy:
    """Moves all that is left; fails if that does not end."""
    for _ in range(100):
        if move(handover, count):
            return handover.new
    raise AssertionError("it does not end")


@pytest.fixture(params=product(NAMES, NAMES), ids=" to ".join)
def handover(request: pytest.FixtureRequest) -> Handover:
    """With a to f in the old policy, of which e is held."""
    old, new = (policy_of(name) for name in request.param)
    for key in "abcdef":
        old.insert(key.encode(), 4096)
    old.hold(b"e")
    return Handover(old, new)


def test_the_order_stays_at_every_moment(handover: Handover) -> None:
    assert names(handover) == "abcdf"
    for _ in range(2):
        assert not move(handover, 2)
        assert names(handover) == "abcdf"
    assert move(handover, 2)
    assert names(handover) == names(handover.new) == "abcdf"


def test_the_sizes_go_along() -> None:
    class Sizes(type(policy_of("lru"))):  # type: ignore[misc]
        def insert(self, key: bytes, size: int) -> None:
            super().insert(key, size)
            told[key] = size

    told: dict[bytes, int] = {}
    old = policy_of("lru")
    old.insert(b"a", 4096)
    handover = Handover(old, Sizes())
    handover.insert(b"b", 8192)
    assert handover.move(3, {b"a": 4096, b"b": 8192}.__getitem__)
    assert told == {b"a": 4096, b"b": 8192}


@pytest.mark.parametrize("moved", [0, 2, 4])
def test_what_is_stored_meanwhile_goes_after_all_that_was_there(handover: Handover, moved: int) -> None:
    move(handover, moved)
    for key in (b"y", b"x"):
        handover.insert(key, 4096)
    assert names(handover) == "abcdfyx"
    assert names(finish(handover)) == "abcdfyx"


@pytest.mark.parametrize("moved", [0, 2, 4])
def test_what_is_used_meanwhile_goes_after_all_that_is_not(handover: Handover, moved: int) -> None:
    move(handover, moved)
    for key in (b"b", b"d"):
        handover.hold(key)
    assert names(handover) == "acf"
    move(handover, 1)
    for key in (b"d", b"b"):
        handover.unhold(key, 4096)
    handover.touch([b"d", b"b"])
    assert names(handover) == "acfdb"
    assert names(finish(handover)) == "acfdb"


@pytest.mark.parametrize("moved", [0, 2])
def test_what_was_held_before_it_comes_last_when_it_is_let_go(handover: Handover, moved: int) -> None:
    move(handover, moved)
    handover.unhold(b"e", 4096)
    assert names(handover) == "abcdfe"
    assert names(finish(handover)) == "abcdfe"


def test_what_is_held_for_longer_than_it_lasts_is_not_lost(handover: Handover) -> None:
    handover.hold(b"c")
    policy = finish(handover)
    assert names(policy) == "abdf"
    for key in (b"e", b"c"):
        policy.unhold(key, 4096)
    assert names(policy) == "abdfec"


def test_what_goes_meanwhile_is_not_moved(handover: Handover) -> None:
    move(handover, 2)
    handover.insert(b"x", 4096)
    for key in (b"a", b"d", b"e", b"x"):
        handover.remove(key)
    assert names(handover) == "bcf"
    assert names(finish(handover)) == "bcf"


def test_after_a_clear_there_is_nothing_to_move(handover: Handover) -> None:
    move(handover, 2)
    handover.insert(b"x", 4096)
    handover.clear()
    handover.insert(b"e", 4096)
    assert names(finish(handover)) == "e"


def test_a_use_of_what_waits_to_be_moved_keeps_the_order_of_the_others() -> None:
    old = policy_of("lru")
    for key in "abcd":
        old.insert(key.encode(), 4096)
    handover = Handover(old, policy_of("lru"))
    handover.touch([b"b"])
    assert names(handover) == "acdb"
    assert names(finish(handover)) == "acdb"


def test_it_ends_however_much_is_used_meanwhile(handover: Handover) -> None:
    for _ in range(100):
        if move(handover, 2):
            break
        for key in (b"a", b"b", b"c", b"d", b"f"):
            handover.hold(key)
            handover.unhold(key, 4096)
        handover.touch([b"a", b"b", b"c", b"d", b"f"])
    else:
        raise AssertionError("it does not end")
    assert sorted(names(handover.new)) == sorted("abcdf")


@pytest.mark.parametrize("third", NAMES)
@pytest.mark.parametrize("moved", [0, 2, 4])
def test_another_change_on_top_keeps_the_order(handover: Handover, third: str, moved: int) -> None:
    move(handover, moved)
    handover.insert(b"x", 4096)
    other = Handover(handover, policy_of(third))
    assert names(other) == "abcdfx"
    move(other, 3)
    other.insert(b"y", 4096)
    other.unhold(b"e", 4096)
    other.hold(b"c")
    assert names(other) == "abdfxye"
    policy = finish(other)
    assert names(policy) == "abdfxye"
    policy.unhold(b"c", 4096)
    assert names(policy) == ("abcdfxye" if third == "fifo" else "abdfxyec")
