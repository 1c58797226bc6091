"""One simulated L1: at the full rate it does what the replay does, and at a lower one it stays consistent."""

from __future__ import annotations

from itertools import islice

import pytest

from engine.advisor.miniature import Miniature
from engine.advisor.sample import Piece, Sampled
from engine.discovery import policy_maker, policy_names
from engine.l1.policies.base import Ranked
from engine.l1.policies.lru_policy import Policy
from engine.simulation.replay import Replay
from tests.support.conversations import conversations

SIZE = 10


def piece(blocks: list[int], first: int = 0, stratum: int = 0) -> Piece:
    last = len(blocks) - 1
    chain = [Sampled(block, SIZE, stratum, first - 1 <= index < last) for index, block in enumerate(blocks)]
    return Piece(chain[:first], chain[first:])


@pytest.mark.parametrize("name", policy_names())
def test_with_all_chunks_it_hits_what_the_replay_hits(name: str) -> None:
    maker = policy_maker(name)
    miniature, replay = Miniature(maker(200 * SIZE)), Replay(maker(200), 200)
    hits = 0
    for blocks in islice(conversations(3, 1500), 1500):
        hits += replay.request(blocks)
        miniature.serve(piece(blocks))
    assert miniature.has_been_full
    assert hits > 500
    assert sum(miniature.hits) == pytest.approx(hits, rel=0.02)


def test_it_never_holds_more_than_its_capacity() -> None:
    miniature = Miniature(policy_maker("lru")(5 * SIZE))
    miniature.serve(piece(list(range(4))))
    assert (len(miniature), miniature.has_been_full) == (4, False)
    miniature.serve(piece(list(range(10, 14))))
    assert (len(miniature), miniature.has_been_full) == (5, True)


def test_a_prompt_keeps_its_prefix_and_its_tail_finds_no_room() -> None:
    miniature = Miniature(policy_maker("lru")(5 * SIZE))
    miniature.serve(piece(list(range(8))))
    miniature.serve(piece(list(range(8)), stratum=1))
    assert miniature.hits[1] == 5


def test_what_stands_behind_a_missing_chunk_is_no_hit() -> None:
    miniature = Miniature(policy_maker("lru")(5 * SIZE))
    miniature.serve(piece([1, 3]))
    miniature.serve(piece([1, 2, 3], stratum=1))
    assert miniature.hits[1] == 1


def test_what_was_not_asked_for_is_stored_and_no_hit() -> None:
    miniature = Miniature(policy_maker("lru")(5 * SIZE))
    miniature.serve(piece([1], stratum=-1))
    miniature.serve(piece([1], stratum=-1))
    assert (len(miniature), sum(miniature.hits)) == (1, 0)


@pytest.mark.parametrize("name", policy_names())
def test_a_smaller_sample_leaves_what_is_below_the_threshold_and_fits(name: str) -> None:
    miniature = Miniature(policy_maker(name)(100 * SIZE))
    for block in range(100):
        miniature.serve(piece([block]))
    miniature.hits[2] = 8.0
    miniature.shrink(20 * SIZE, 30, 0.5)
    assert len(miniature) == 20
    assert miniature.hits[2] == 4.0
    assert not miniature.has_been_full
    for block in range(30):
        miniature.serve(piece([block]))
    assert len(miniature) == 20


@pytest.mark.parametrize("name", policy_names())
def test_a_clear_empties_it(name: str) -> None:
    miniature = Miniature(policy_maker(name)(10 * SIZE))
    miniature.serve(piece(list(range(10))))
    miniature.clear()
    miniature.serve(piece(list(range(10)), stratum=1))
    assert sum(miniature.hits) == 0
    assert len(miniature) == 10


class Listening(Policy):
    """Remembers who was told to stand before whom."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.parents: list[object] = []

    def insert(self, ranked: Ranked, parent: Ranked | None) -> None:
        super().insert(ranked, parent)
        self.parents += [parent.key] if parent else []


def test_the_policy_learns_which_chunks_are_not_the_last_ones_stored() -> None:
    policy = Listening(100 * SIZE)
    miniature = Miniature(policy)
    miniature.serve(piece([1, 2, 3]))
    assert policy.parents == [1, 2]
    miniature.serve(piece([1, 2, 3, 4], first=3))
    assert policy.parents == [1, 2, 3]
    assert len(list(policy.members())) == len(miniature) == 4


def test_behind_a_miss_in_an_earlier_piece_there_are_no_hits() -> None:
    miniature = Miniature(policy_maker("lru")(100 * SIZE))
    miniature.serve(piece([3]))
    assert miniature.serve(piece([1, 2]))
    assert miniature.serve(piece([1, 2, 3], first=2, stratum=1), has_missed=True)
    assert miniature.hits[1] == 0
    assert not miniature.serve(piece([1, 2, 3], stratum=1))
    assert miniature.hits[1] == 3
