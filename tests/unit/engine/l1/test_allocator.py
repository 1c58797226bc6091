"""The allocator against a map of every byte."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.l1.allocator import Allocator

CAPACITY = 40


class AgainstEveryByte(RuleBasedStateMachine):
    """`owners` says of every byte who has it; it is what the allocator has to agree with.

    The bytes from `capacity` on are the tail.
    """

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(CAPACITY)
        self.owners: list[int | None] = [None] * CAPACITY
        self.capacity = CAPACITY
        self.taken: dict[int, tuple[int, int]] = {}
        self.last = 0

    def free_runs(self) -> list[tuple[int, int]]:
        """(start, size) of every maximal run of free bytes."""
        runs: list[tuple[int, int]] = []
        for place, owner in enumerate(self.owners):
            if owner is None and runs and sum(runs[-1]) == place:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            elif owner is None:
                runs.append((place, 1))
        return runs

    def free_runs_below(self) -> list[tuple[int, int]]:
        """What of them can be handed out."""
        return [(start, min(size, self.capacity - start)) for start, size in self.free_runs() if start < self.capacity]

    @rule(size=st.integers(1, 12))
    def allocate(self, size: int) -> None:
        fitting = [run for run in self.free_runs_below() if run[1] >= size]
        assert self.allocator.fits(size) == bool(fitting)
        offset = self.allocator.allocate(size)
        if not fitting:
            assert offset is None
            return
        smallest = min(size for _, size in fitting)
        assert offset in [start for start, run_size in fitting if run_size == smallest]
        assert offset is not None
        self.last += 1
        self.taken[self.last] = (offset, size)
        self.owners[offset : offset + size] = [self.last] * size

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset, size = self.taken.pop(data.draw(st.sampled_from(sorted(self.taken))))
        self.allocator.free(offset, size)
        self.owners[offset : offset + size] = [None] * size

    @rule(data=st.data())
    def keep_only(self, data: st.DataObject) -> None:
        kept = data.draw(st.sets(st.sampled_from(sorted(self.taken)))) if self.taken else set()
        self.taken = {owner: place for owner, place in self.taken.items() if owner in kept}
        self.owners = [owner if owner in kept else None for owner in self.owners]
        self.allocator.keep_only(iter(list(self.taken.values())))

    @rule(capacity=st.integers(0, 2 * CAPACITY))
    def set_capacity(self, capacity: int) -> None:
        self.allocator.set_capacity(capacity)
        self.owners += [None] * (capacity - len(self.owners))
        self.capacity = capacity

    @precondition(lambda self: not any(self.owners[self.capacity :]))
    @rule()
    def cut_tail(self) -> None:
        self.allocator.cut_tail()
        del self.owners[self.capacity :]

    @invariant()
    def the_tail_is_what_lies_behind_the_capacity(self) -> None:
        assert self.allocator.capacity == self.capacity
        assert self.allocator.tail == (self.capacity, len(self.owners))
        assert self.allocator.tail_is_free == (not any(self.owners[self.capacity :]))

    @invariant()
    def used_is_what_somebody_has(self) -> None:
        assert self.allocator.used == sum(owner is not None for owner in self.owners)

    @invariant()
    def neighbours_are_found_from_both_sides(self) -> None:
        starts = {start: start + size for start, size in self.free_runs_below()}
        ends = {start + size: start for start, size in self.free_runs()}
        for place in range(len(self.owners) + 1):
            assert self.allocator.free_end_after(place) == starts.get(place, place)
            assert self.allocator.free_start_before(place) == ends.get(place, place)


TestAgainstEveryByte = AgainstEveryByte.TestCase
TestAgainstEveryByte.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def test_everything_can_be_had_at_once() -> None:
    allocator = Allocator(CAPACITY)
    assert allocator.allocate(CAPACITY) == 0
    assert allocator.allocate(1) is None


@pytest.mark.parametrize("capacity", [0, 8])
def test_more_than_there_is_cannot_be_had(capacity: int) -> None:
    allocator = Allocator(capacity)
    assert allocator.allocate(capacity + 1) is None
    assert allocator.used == 0


def test_what_is_given_back_merges_with_both_neighbours() -> None:
    allocator = Allocator(30)
    places = [allocator.allocate(10) for _ in range(3)]
    assert places == [0, 10, 20]
    for place in (0, 20, 10):
        allocator.free(place, 10)
    assert allocator.allocate(30) == 0


class TestTail:
    def test_a_lowered_capacity_hands_out_nothing_behind_it(self) -> None:
        allocator = Allocator(30)
        allocator.set_capacity(10)
        assert allocator.allocate(11) is None
        assert allocator.allocate(10) == 0
        assert allocator.allocate(1) is None
        assert allocator.tail == (10, 30)

    def test_what_lies_behind_it_is_taken_back_and_keeps_the_tail_until_then(self) -> None:
        allocator = Allocator(30)
        places = [allocator.allocate(10) for _ in range(3)]
        assert places == [0, 10, 20]
        allocator.set_capacity(15)
        allocator.free(20, 10)
        assert not allocator.tail_is_free
        allocator.free(10, 10)
        assert allocator.tail_is_free
        assert allocator.used == 10
        assert allocator.allocate(5) == 10

    def test_a_tail_that_is_cut_off_does_not_come_back(self) -> None:
        allocator = Allocator(30)
        allocator.set_capacity(10)
        allocator.cut_tail()
        assert allocator.tail == (10, 10)
        assert allocator.tail_is_free
        assert allocator.allocate(11) is None
        assert allocator.allocate(10) == 0

    @pytest.mark.parametrize("cut", [False, True])
    @pytest.mark.parametrize("capacity", [20, 30, 40])
    def test_a_raised_capacity_is_one_range_with_what_is_free_before_it(self, capacity: int, cut: bool) -> None:
        allocator = Allocator(30)
        assert allocator.allocate(5) == 0
        allocator.set_capacity(10)
        if cut:
            allocator.cut_tail()
        allocator.set_capacity(capacity)
        assert allocator.allocate(capacity - 5) == 5

    def test_a_raise_beyond_the_end_finds_what_is_still_used_in_the_tail(self) -> None:
        allocator = Allocator(30)
        assert [allocator.allocate(10) for _ in range(3)] == [0, 10, 20]
        allocator.set_capacity(10)
        allocator.free(10, 10)
        allocator.set_capacity(40)
        assert allocator.allocate(10) in (10, 30)
        assert allocator.allocate(10) in (10, 30)
        assert allocator.allocate(1) is None

    def test_nothing_that_is_not_kept_holds_the_tail(self) -> None:
        allocator = Allocator(30)
        for _ in range(3):
            allocator.allocate(10)
        allocator.set_capacity(10)
        allocator.keep_only([(10, 10)])
        assert not allocator.tail_is_free
        assert allocator.allocate(10) == 0
        assert allocator.allocate(1) is None
        allocator.keep_only([(0, 10)])
        assert allocator.tail_is_free
