"""The allocator against a map of every byte."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.l1.allocator import Allocator

CAPACITY = 40


class AgainstEveryByte(RuleBasedStateMachine):
    """`owners` says of every byte who has it; it is what the allocator has to agree with."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(CAPACITY)
        self.owners: list[int | None] = [None] * CAPACITY
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

    @rule(size=st.integers(1, 12))
    def allocate(self, size: int) -> None:
        fitting = [run for run in self.free_runs() if run[1] >= size]
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

    @invariant()
    def used_is_what_somebody_has(self) -> None:
        assert self.allocator.used == sum(owner is not None for owner in self.owners)

    @invariant()
    def neighbours_are_found_from_both_sides(self) -> None:
        runs = self.free_runs()
        starts, ends = {start: start + size for start, size in runs}, {start + size: start for start, size in runs}
        for place in range(CAPACITY + 1):
            assert self.allocator.free_end_after(place) == starts.get(place, place)
            assert self.allocator.free_start_before(place) == ends.get(place, place)


TestAgainstEveryByte = AgainstEveryByte.TestCase
TestAgainstEveryByte.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


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
