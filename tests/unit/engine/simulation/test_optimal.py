"""The optimum against an oracle that tries everything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.simulation.optimal import Optimal
from tests.support.conversations import conversations

Requests = list[tuple[int, ...]]


def hits(requests: Sequence[Sequence[int]], capacity: int) -> int:
    cache = Optimal(requests, capacity)
    return sum(cache.request(blocks) for blocks in requests)


def most_hits(requests: Requests, capacity: int) -> int:
    """The most leading blocks found, over every choice of what to keep after each request."""
    reached = {frozenset[int](): 0}
    for blocks in requests:
        best: dict[frozenset[int], int] = {}
        for kept, before in reached.items():
            found = next((place for place, block in enumerate(blocks) if block not in kept), len(blocks))
            candidates = kept | set(blocks)
            for chosen in combinations(candidates, min(capacity, len(candidates))):
                state = frozenset(chosen)
                best[state] = max(best.get(state, 0), before + found)
        reached = best
    return max(reached.values())


@st.composite
def prompts(draw: st.DrawFn) -> Requests:
    """Paths from the root of a binary tree, by numbers: each block has one predecessor."""
    turns = st.lists(st.integers(0, 1), min_size=1, max_size=3)
    requests = []
    for path in draw(st.lists(turns, max_size=8)):
        block, blocks = 1, []
        for turn in path:
            block = 2 * block + turn
            blocks.append(block)
        requests.append(tuple(blocks))
    return requests


@given(prompts(), st.integers(1, 5))
def test_no_choice_has_more_hits(requests: Requests, capacity: int) -> None:
    assert hits(requests, capacity) == most_hits(requests, capacity)


def ranked_hits(requests: Sequence[Sequence[int]], capacity: int) -> int:
    """All that could be kept is sorted after each request, by next use and depth."""
    kept: set[int] = set()
    total = 0
    for index, blocks in enumerate(requests):
        total += next((place for place, block in enumerate(blocks) if block not in kept), len(blocks))
        rank = {}
        for later in range(len(requests) - 1, index, -1):
            rank.update({block: (later, depth) for depth, block in enumerate(requests[later])})
        kept = set(sorted((block for block in kept.union(blocks) if block in rank), key=rank.__getitem__)[:capacity])
    return total


@pytest.mark.parametrize("capacity", [1, 3, 10, 40, 150])
def test_sorting_all_blocks_after_each_request_has_as_many_hits(capacity: int) -> None:
    requests = conversations(seed=4, requests=120)
    assert hits(requests, capacity) == ranked_hits(requests, capacity) > 0


def test_of_blocks_with_the_same_next_use_the_deepest_goes() -> None:
    assert hits([(1, 2), (9,), (9,), (1, 2)], 2) == 2


def test_who_is_used_last_goes() -> None:
    assert hits([(1,), (2,), (3,), (1,), (2,), (3,)], 2) == 2


def test_what_is_used_later_than_all_that_is_there_is_not_stored() -> None:
    cache = Optimal([(1,), (2,), (1,), (2,)], 1)
    assert [cache.request(blocks) for blocks in [(1,), (2,), (1,), (2,)]] == [0, 0, 1, 0]


def test_of_a_prompt_too_long_for_the_cache_the_beginning_stays() -> None:
    assert hits([(1, 2, 3, 4), (1, 2, 3, 4)], 3) == 3


def test_what_is_here_counts_with_its_next_use_from_this_request_on() -> None:
    """1 is here when 5 comes with it, but is needed again later than 5."""
    requests = [(1,), (1, 5), (5,), (1,)]
    cache = Optimal(requests, 1)
    assert [cache.request(blocks) for blocks in requests] == [0, 1, 1, 0]


@pytest.mark.parametrize("capacity", [1, 2, 10])
def test_nothing_that_comes_once_is_ever_hit(capacity: int) -> None:
    assert hits([(1, 2), (3, 4), (5,)], capacity) == 0
