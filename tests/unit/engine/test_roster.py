"""A walk in pages meets everyone who is there from its start to its end once, whatever comes and goes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.roster import Page, Roster


def roster_of(names: str) -> tuple[Roster[str], dict[str, int]]:
    roster = Roster[str]()
    return roster, {name: roster.add(name) for name in names}


def test_nobody_is_met_where_nobody_is() -> None:
    assert Roster[str]().page(0, 5) == Page([], None)


def test_pages_tell_where_to_go_on_and_the_last_one_that_it_is_the_last() -> None:
    roster, _ = roster_of("abcde")
    assert roster.page(0, 2) == Page(["a", "b"], 2)
    assert roster.page(2, 2) == Page(["c", "d"], 4)
    assert roster.page(4, 2) == Page(["e"], None)
    assert roster.page(3, 2) == Page(["d", "e"], None)
    assert roster.page(7, 2) == Page([], None)


def test_a_seat_that_was_left_is_given_to_the_next_one_and_nobody_moves() -> None:
    roster, seats = roster_of("abc")
    roster.remove(seats["b"])
    assert (len(roster), roster.page(0, 3).members) == (3, ["a", "c"])
    assert roster.add("d") == seats["b"]
    assert roster.page(0, 3).members == ["a", "d", "c"]
    assert (roster.add("e"), len(roster)) == (3, 4)


def test_a_page_of_seats_that_were_left_is_empty_and_not_the_last() -> None:
    roster, seats = roster_of("abcd")
    for name in "ab":
        roster.remove(seats[name])
    assert roster.page(0, 2) == Page([], 2)


@given(
    first=st.integers(0, 12),
    changes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20),
    count=st.integers(1, 5),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_a_walk_meets_everyone_who_stays_exactly_once_whatever_comes_and_goes(
    first: int, changes: list[tuple[int, int]], count: int, data: st.DataObject
) -> None:
    """`changes`: how many leave and come behind each page."""
    roster = Roster[int]()
    there = {name: roster.add(name) for name in range(first)}
    staying, come = set(there), first
    met: Counter[int] = Counter()
    seat: int | None = 0
    for leaving, coming in [*changes, *[(0, 0)] * 100]:
        if seat is None:
            break
        page = roster.page(seat, count)
        assert set(page.members) <= set(there), "one is met who has left"
        met.update(page.members)
        seat = page.next_place
        for _ in range(min(leaving, len(there))):
            name = data.draw(st.sampled_from(sorted(there)))
            roster.remove(there.pop(name))
            staying.discard(name)
        for _ in range(coming):
            there[come], come = roster.add(come), come + 1
    assert seat is None
    assert {name: met[name] for name in staying} == dict.fromkeys(staying, 1)
    assert max(met.values(), default=1) == 1, "nobody comes back, so nobody is met twice"
    assert len(set(there.values())) == len(there)
