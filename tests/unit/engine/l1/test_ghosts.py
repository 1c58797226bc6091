"""What left is remembered: the oldest is forgotten first, any can be taken out, and each costs little."""

from __future__ import annotations

import sys
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.l1.policies.ghosts import Ghost, Ghosts
from engine.l1.policies.hit_density_policy import Policy
from tests.unit.engine.l1.shelf import FullShelf

MANY = 100_000


def bytes_of(*things: Any, met: set[int] | None = None) -> int:
    """Of all that can be reached, what is shared counted once."""
    met, size = met or set(), 0
    for thing in things:
        if id(thing) in met:
            continue
        met.add(id(thing))
        size += sys.getsizeof(thing)
        if isinstance(thing, dict):
            thing = [*thing.keys(), *thing.values()]
        if isinstance(thing, list | tuple):
            size += bytes_of(*thing, met=met)
    return size


def bytes_each(ghosts: Ghosts) -> float:
    return bytes_of(*vars(ghosts).values()) / len(ghosts)


def filled(*keys: int, size: int = 1) -> Ghosts:
    ghosts = Ghosts()
    for key in keys:
        ghosts.add(key, size)
    return ghosts


def test_what_was_not_there_is_not_remembered() -> None:
    assert filled(1).take(2) is None


def test_what_is_remembered_is_its_size_and_the_mark_once() -> None:
    ghosts = Ghosts()
    ghosts.add(b"key", 5, ("mark", 1))
    assert ghosts.take(b"key") == Ghost(5, ("mark", 1))
    assert (ghosts.take(b"key"), ghosts.size, len(ghosts)) == (None, 0, 0)


def test_who_comes_again_is_the_newest_and_counts_once() -> None:
    ghosts = filled(1, 2)
    ghosts.add(1, 3)
    assert (len(ghosts), ghosts.size) == (2, 4)
    assert ghosts.trim(3) == [Ghost(1, None)]
    assert ghosts.take(1) == Ghost(3, None)


def test_no_more_is_forgotten_than_has_to_be() -> None:
    ghosts = filled(1, 2, 3, size=4)
    assert ghosts.trim(12) == []
    assert len(ghosts.trim(11)) == 1
    assert len(ghosts.trim(0)) == 2


@given(st.lists(st.tuples(st.sampled_from(["add", "add", "take", "trim"]), st.integers(0, 9), st.integers(1, 4))))
@settings(max_examples=300, deadline=None)
def test_it_is_a_list_from_which_any_can_be_taken(steps: list[tuple[str, int, int]]) -> None:
    ghosts = Ghosts()
    line: list[tuple[int, int]] = []
    for action, key, number in steps:
        known = [size for each, size in line if each == key]
        if action == "trim":
            forgotten = ghosts.trim(3 * number)
            expected = []
            while sum(size for _, size in line) > 3 * number:
                expected.append(line.pop(0)[1])
            assert [ghost.size for ghost in forgotten] == expected
            continue
        line = [each for each in line if each[0] != key]
        if action == "add":
            ghosts.add(key, number)
            line.append((key, number))
        else:
            found = ghosts.take(key)
            assert ((found and [found.size]) or []) == known
        assert (ghosts.size, len(ghosts)) == (sum(size for _, size in line), len(line))


def test_the_oldest_goes_first_however_many_are_taken_and_come_again() -> None:
    """More than are looked for at once."""
    random, ghosts, line = Random(1), Ghosts(), dict[int, None]()
    for number in range(20_000):
        key = random.randrange(3000)
        line.pop(key, None)
        if number % 3:
            ghosts.add(key, 1, number)
            line[key] = None
        else:
            ghosts.take(key)
        if number % 1000 == 999:
            forgotten = ghosts.trim(len(line) * 2 // 3)
            left = list(line)[len(forgotten) :]
            assert list(ghosts._ghosts) == left
            assert [ghost.mark for ghost in forgotten] == sorted(ghost.mark for ghost in forgotten)  # type: ignore[type-var]
            line = dict.fromkeys(left)


class TestCost:
    def test_a_hundred_thousand_that_have_come_cost_100_bytes_each_at_most(self) -> None:
        random, ghosts = Random(1), Ghosts()
        for number in range(MANY):
            ghosts.add(random.randbytes(48), 1, (number % 3, number // 100))
        assert bytes_each(ghosts) <= 100

    def test_where_many_come_and_go_they_cost_160_at_most(self) -> None:
        random, ghosts = Random(1), Ghosts()
        for number in range(4 * MANY):
            key = random.randrange(2 * MANY).to_bytes(48, "big")
            ghosts.take(key)
            ghosts.add(key, 1, (number % 3, number // 100))
            ghosts.trim(MANY)
        assert len(ghosts) == MANY
        assert bytes_each(ghosts) <= 160

    def test_hit_density_remembers_few_different_times(self) -> None:
        policy = Policy(5000)
        shelf, random = FullShelf(policy, 5000), Random(1)
        for _ in range(120_000):
            shelf.request(int(60_000 * random.random() ** 2))
        assert len(policy._ghosts) == 20_000
        assert bytes_each(policy._ghosts) <= 160
        assert sum(len(each.waiting) for each in policy._classes) < 5000
