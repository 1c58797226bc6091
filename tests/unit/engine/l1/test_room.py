"""Whom room is made of: the policy's order first, then neighbours, then gaps; and nobody who must not go."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest

from engine.keys import namespace
from engine.l1.allocator import Allocator
from engine.l1.entry import Entry
from engine.l1.places import Places
from engine.l1.room import RoomFinder

PAGE = 4096
SPACE = namespace("m", 1, 0, bytes(16), "")
LOOKS = 256
"""So many victims are looked at in the policy's order."""


class Memory:
    """Drawn as a text, a letter for each page: `.` is free, and neighbours of one letter are an object.

    Capitals are in use. The capacity can end before the text does.
    """

    def __init__(self, drawn: str, capacity: int | None = None) -> None:
        self.allocator = Allocator(len(drawn) * PAGE)
        self.places = Places(PAGE)
        self.entries: dict[str, Entry] = {}
        start = 0
        while start < len(drawn):
            name, end = drawn[start], start + 1
            while end < len(drawn) and drawn[end] == name:
                end += 1
            self.allocator.allocate((end - start) * PAGE)
            if name != ".":
                made = Entry(name.encode(), SPACE, start * PAGE, (end - start) * PAGE, 0.0, 0)
                self.entries[name] = made
                self.places.add(made)
            start = end
        for start, name in enumerate(drawn):
            if name == ".":
                self.allocator.free(start * PAGE, PAGE)
        if capacity is not None:
            self.allocator.set_capacity(capacity * PAGE)

    def find(
        self,
        pages: int,
        order: str,
        condemned: str = "",
        allowance: Callable[[], Callable[[Entry], bool]] | None = None,
    ) -> str:
        """The names of those that have to go, sorted."""
        found = self.found(pages, order, condemned, allowance)
        self.check(pages, found)
        return "".join(sorted(entry.key.decode() for entry in found))

    def found(
        self, pages: int, order: str, condemned: str, allowance: Callable[[], Callable[[Entry], bool]] | None
    ) -> Collection[Entry]:
        entries = self.entries
        in_use = [entry for name, entry in entries.items() if name.isupper()]
        finder = RoomFinder(self.allocator, self.places)
        may_go = allowance or (lambda: lambda entry: entry not in in_use)
        named = [entries[name] for name in order]
        return finder.find(pages * PAGE, [entries[name] for name in condemned], iter(named), may_go, in_use)

    def check(self, pages: int, found: Collection[Entry]) -> None:
        """When they go there is room, and there was none before; nobody is named twice."""
        assert len(set(found)) == len(found)
        assert not any(entry.key.isupper() for entry in found)
        assert not self.allocator.fits(pages * PAGE)
        if found:
            for entry in found:
                self.allocator.free(entry.offset, entry.size)
            assert self.allocator.fits(pages * PAGE)


class TestOrder:
    def test_of_one_size_the_first_victim_goes(self) -> None:
        assert Memory("abcd").find(1, "cabd") == "c"

    def test_a_larger_one_is_enough_alone(self) -> None:
        assert Memory("aabbbc").find(2, "bac") == "b"

    def test_the_first_in_the_order_that_make_a_run_go_and_others_do_not(self) -> None:
        assert Memory("abcdef").find(2, "adbfce") == "ab"

    def test_what_is_free_at_their_sides_counts(self) -> None:
        assert Memory(".a.b").find(3, "ba") == "a"
        assert Memory("b.a").find(2, "ab") == "a"

    def test_of_the_run_the_part_that_costs_the_fewest_bytes_goes(self) -> None:
        assert Memory("a.bbc").find(3, "abc") == "b"

    def test_what_is_in_use_separates(self) -> None:
        assert Memory("aXbYcd").find(2, "abdc") == "cd"

    def test_where_nothing_can_be_done_nobody_goes(self) -> None:
        assert Memory("aXbYc").find(2, "abc") == ""
        assert Memory("ab").find(3, "ab") == ""
        assert Memory("XY").find(1, "") == ""


SMALL = [chr(0x4E00 + number) for number in range(LOOKS)]
USED = [chr(code) for code in range(0xC0, 0x2000) if chr(code).isupper()][:LOOKS]


class TestMixedSizes:
    """Small ones are colder than what a large one needs, very many of them, and none are neighbours."""

    def memory(self, drawn: str) -> tuple[Memory, str]:
        """An apart small object for each look, with something in use between, and what is drawn at the end."""
        apart = "".join(name + used for name, used in zip(SMALL, USED, strict=True))
        return Memory(apart + drawn), "".join(SMALL)

    @pytest.mark.parametrize(
        ("drawn", "coldest", "gone"),
        [
            ("abcdX", "a", "abc"),
            ("abcdX", "c", "bcd"),
            ("abcdX", "d", "bcd"),
            ("a.cd.X", "a", "ac"),
            ("abbbbcX", "c", "bc"),
        ],
    )
    def test_the_coldest_goes_with_its_neighbours_those_behind_it_first(
        self, drawn: str, coldest: str, gone: str
    ) -> None:
        memory, small = self.memory(drawn)
        assert memory.find(3, coldest + small) == gone

    def test_where_the_coldest_has_too_few_it_is_a_gap_elsewhere(self) -> None:
        memory, small = self.memory("aXbcdeY")
        assert memory.find(3, "a" + small) == "bcd"

    def test_a_victim_that_comes_after_very_many_is_found_by_its_gap(self) -> None:
        memory, small = self.memory("abcX")
        assert memory.find(3, small + "abc") == "abc"


class TestTail:
    """The capacity was lowered; what lies behind it stays for a while and is no room."""

    def test_what_lies_behind_is_passed_over(self) -> None:
        assert Memory("abcd", 2).find(1, "cdab") == "a"

    def test_nor_does_it_help_a_neighbour_before_it(self) -> None:
        assert Memory("Xabcd", 2).find(2, "abcd") == ""

    def test_nor_what_is_condemned_there(self) -> None:
        assert Memory("abccc", 2).find(1, "ab", condemned="c") == "ac"

    def test_one_that_lies_across_it_goes_when_nobody_else_can(self) -> None:
        assert Memory("Xaaa", 2).find(1, "a") == "a"
        assert Memory("Xaaa", 2).find(2, "a") == ""


class TestCondemned:
    def test_where_they_are_enough_nobody_else_goes(self) -> None:
        assert Memory("abcd").find(1, "bcda", condemned="c") == "c"

    def test_where_they_are_not_others_go_with_them(self) -> None:
        assert Memory("abcd").find(2, "abcd", condemned="c") == "abc"

    def test_they_count_as_free(self) -> None:
        assert Memory("abcd").find(2, "bcda", condemned="c") == "bc"

    def test_they_are_not_named_twice(self) -> None:
        assert Memory("abcX").find(3, "cab", condemned="b") == "abc"


class TestAllowance:
    def limited(self, size: int) -> Callable[[], Callable[[Entry], bool]]:
        """Only so many pages may go together."""

        def allowance() -> Callable[[Entry], bool]:
            left = [size * PAGE]

            def may_go(entry: Entry) -> bool:
                left[0] -= entry.size
                return left[0] >= 0 and not entry.key.isupper()

            return may_go

        return allowance

    @pytest.mark.parametrize(("pages", "gone"), [(3, "abc"), (2, "")])
    def test_neighbours_and_what_is_in_gaps_go_only_as_far_as_they_may_together(self, pages: int, gone: str) -> None:
        assert Memory("abcdX").find(3, "a", allowance=self.limited(pages)) == gone

    def test_each_gap_is_asked_about_anew(self) -> None:
        assert Memory("XabYcd").find(2, "", allowance=self.limited(2)) == "ab"


def test_what_is_in_use_at_the_edges_leaves_the_gaps_between() -> None:
    assert Memory("XabY").find(2, "") == "ab"
    assert Memory("abX").find(2, "") == "ab"
    assert Memory("Xab").find(2, "") == "ab"
    assert Memory("aXb").find(2, "") == ""
