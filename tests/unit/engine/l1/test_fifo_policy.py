"""First in, first out, and never who is in use."""

from __future__ import annotations

from random import Random

from engine.l1.policies.fifo_policy import Policy
from tests.unit.engine.l1.policy_suite import CAPACITY, PolicySuite
from tests.unit.engine.l1.shelf import FullShelf, Shelf


class TestFifo(PolicySuite):
    make = staticmethod(Policy)
    ghost_capacities = 0


def shelf_of(keys: str) -> Shelf:
    shelf = Shelf(Policy(CAPACITY))
    shelf.put(keys)
    return shelf


def test_use_does_not_matter() -> None:
    shelf = shelf_of("abc")
    shelf.hit("ba")
    shelf.refresh("ba")
    assert shelf.order == [*"abc"]


def test_what_is_held_keeps_its_place_until_its_turn_comes_and_is_the_next_one_then() -> None:
    shelf = shelf_of("abcd")
    shelf.hold("ac")
    next(shelf.policy.victims())
    shelf.unhold("ac")
    assert shelf.order == [*"abcd"]


def test_what_was_held_when_its_turn_came_goes_next_suffix_first() -> None:
    shelf = shelf_of("dcbaxy")
    shelf.hold("abcd")
    assert shelf.order == [*"xy"]
    shelf.unhold("dcba")
    assert shelf.order == [*"dcbaxy"]


def test_what_was_removed_while_it_was_held_has_lost_its_place() -> None:
    shelf = shelf_of("abc")
    shelf.hold("a")
    shelf.remove("a")
    shelf.put("a")
    assert shelf.order == [*"bca"]


def test_a_full_one_has_the_last_that_came() -> None:
    random, shelf = Random(5), FullShelf(Policy(8), 8)
    line: list[int] = []
    for _ in range(20_000):
        key = random.randrange(14)
        assert shelf.request(key) == (key in line)
        if key not in line:
            line = [*line[-7:], key]
        assert shelf.order == line
