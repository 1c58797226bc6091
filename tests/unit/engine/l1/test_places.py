"""Objects by address: who starts where, who is before, and a walk that goes on whatever comes and goes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.keys import namespace
from engine.l1.entry import Entry
from engine.l1.places import Places

PAGE = 4096
SPACE = namespace("m", 1, 0, bytes(16), "")


def entry(page: int, pages: int = 1) -> Entry:
    return Entry(b"%d" % page, SPACE, page * PAGE, pages * PAGE, 0.0, 0)


def places_of(*pages: int) -> Places:
    places = Places(PAGE)
    for page in pages:
        places.add(entry(page))
    return places


def pages(places: Places, offset: int = 0) -> list[int]:
    return [entry.offset // PAGE for entry in places.walk(offset)]


def before(places: Places, offset: int) -> int | None:
    found = places.before(offset)
    return None if found is None else found.offset // PAGE


def test_where_nothing_is_nobody_is_met() -> None:
    places = Places(PAGE)
    assert (len(places), pages(places), places.at(0), places.before(1 << 40)) == (0, [], None, None)


def test_a_walk_is_in_the_order_of_the_addresses_whoever_came_first() -> None:
    assert pages(places_of(7, 2, 90, 0)) == [0, 2, 7, 90]


@pytest.mark.parametrize(
    ("offset", "met"), [(0, [0, 2, 7]), (1, [2, 7]), (2 * PAGE, [2, 7]), (2 * PAGE + 1, [7]), (8 * PAGE, [])]
)
def test_it_begins_with_the_first_that_starts_at_the_address_or_behind_it(offset: int, met: list[int]) -> None:
    assert pages(places_of(0, 2, 7), offset) == met


@pytest.mark.parametrize(("offset", "found"), [(0, None), (PAGE, 0), (2 * PAGE, 0), (3 * PAGE, 2), (1 << 40, 7)])
def test_before_an_address_is_the_last_that_starts_there(offset: int, found: int | None) -> None:
    assert before(places_of(0, 2, 7), offset) == found


def test_at_an_address_is_who_starts_there() -> None:
    places = Places(PAGE)
    places.add(entry(1, 3))
    assert [found is not None for found in map(places.at, (0, PAGE, 2 * PAGE))] == [False, True, False]


def test_who_has_left_is_not_met_and_the_place_can_be_taken_again() -> None:
    places = places_of(1, 2, 3)
    gone = places.at(2 * PAGE)
    assert gone is not None
    places.remove(gone)
    assert (pages(places), len(places), before(places, 3 * PAGE)) == ([1, 3], 2, 1)
    new = entry(2)
    places.add(new)
    assert places.at(2 * PAGE) is new


def test_the_object_in_hand_may_be_removed() -> None:
    places = places_of(0, 1, 2, 3)
    for found in places.walk(0):
        places.remove(found)
    assert (pages(places), len(places)) == ([], 0)


def test_a_walk_meets_who_comes_in_front_of_it_and_not_who_comes_behind() -> None:
    places = places_of(1, 5)
    walk = places.walk(0)
    assert next(walk).offset == PAGE
    places.add(entry(0))
    places.add(entry(9))
    assert [found.offset // PAGE for found in walk] == [5, 9]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=80))
@settings(max_examples=200, deadline=None)
def test_it_is_a_sorted_list(steps: list[tuple[bool, int]]) -> None:
    places, there = Places(PAGE), dict[int, Entry]()
    for comes, page in steps:
        if comes and page not in there:
            there[page] = entry(page)
            places.add(there[page])
        elif not comes and page in there:
            places.remove(there.pop(page))
    line = sorted(there)
    assert (pages(places), len(places)) == (line, len(line))
    for page in range(0, 62, 3):
        assert pages(places, page * PAGE) == [each for each in line if each >= page]
        assert before(places, page * PAGE) == max((each for each in line if each < page), default=None)
        assert places.at(page * PAGE) is there.get(page)


def test_a_walk_in_parts_meets_everyone_who_stays_once_whatever_comes_and_goes() -> None:
    random = Random(1)
    for _ in range(50):
        places, there = Places(PAGE), dict[int, Entry]()
        for page in random.sample(range(200), 60):
            there[page] = entry(page)
            places.add(there[page])
        staying, met = set(there), list[int]()
        offset: int | None = 0
        while offset is not None:
            part, offset = pages(places, offset)[:7], None
            met += part
            if len(part) == 7:
                offset = part[-1] * PAGE + 1
            for page in random.sample(sorted(there), min(3, len(there))):
                places.remove(there.pop(page))
                staying.discard(page)
            for page in random.sample(range(200), 4):
                if page not in there:
                    there[page] = entry(page)
                    places.add(there[page])
        assert len(met) == len(set(met))
        assert staying <= set(met)
