"""Least recently used, and never who is in use."""

from __future__ import annotations

from random import Random

from engine.l1.policies.lru_policy import Policy
from tests.unit.engine.l1.policy_suite import CAPACITY, PolicySuite
from tests.unit.engine.l1.shelf import FullShelf, Shelf


class TestLru(PolicySuite):
    make = staticmethod(Policy)
    ghost_capacities = 0


def shelf_of(keys: str) -> Shelf:
    shelf = Shelf(Policy(CAPACITY))
    shelf.put(keys)
    return shelf


def test_what_is_used_goes_last_and_a_prompts_suffix_before_its_prefix() -> None:
    shelf = shelf_of("abcd")
    shelf.hit("ba")
    assert shelf.order == [*"cdba"]
    shelf.refresh("dc")
    assert shelf.order == [*"badc"]


def test_what_is_held_is_new_when_it_is_let_go() -> None:
    shelf = shelf_of("abc")
    shelf.hold("a")
    shelf.unhold("a")
    assert shelf.order == [*"bca"]


def test_it_is_exactly_the_order_of_the_last_use() -> None:
    """Against a list, with objects held for any time."""
    random, shelf = Random(3), Shelf(Policy(1))
    line: list[int] = []
    for _ in range(20_000):
        key = random.randrange(12)
        ranked = shelf.there.get(key)
        if ranked is None:
            shelf.put([key])
            line.append(key)
        elif ranked.held:
            shelf.unhold([key])
            line.append(key)
        else:
            action = random.choice(["hit", "refresh", "hold", "evict"])
            line.remove(key)
            if action in ("hit", "refresh"):
                line.append(key)
            getattr(shelf, action)(key if action == "evict" else [key])
        assert shelf.order == line


def test_a_full_one_hits_what_a_list_of_the_last_uses_has() -> None:
    random, shelf = Random(4), FullShelf(Policy(8), 8)
    line: list[int] = []
    for _ in range(20_000):
        key = random.randrange(14)
        assert shelf.request(key) == (key in line)
        line = [*[each for each in line if each != key][-7 if key not in line else 0 :], key]
        assert shelf.order == line
