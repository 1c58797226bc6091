"""The server's policies on traces: against an oracle of LRU, the optimum, and figures that were published."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine import OPTIMAL, StartError, Trace, parse_trace, policy_names, simulate, simulated_policies
from tests.support.conversations import conversations, lines

ASKED = conversations(seed=1, requests=300)
TRACE = parse_trace(lines(ASKED))
SIZES = (1, 3, 10, 40, 150)
every_size = pytest.mark.parametrize("capacity", SIZES)


def lru_hits(capacity: int) -> int:
    """Most recent first: a request's blocks in their order, as many as there is room for, before all others."""
    recent: list[int] = []
    hits = 0
    for blocks in ASKED:
        hits += next((place for place, block in enumerate(blocks) if block not in recent), len(blocks))
        recent = [*blocks[:capacity], *(block for block in recent if block not in blocks)][:capacity]
    return hits


@every_size
def test_lru_is_lru(capacity: int) -> None:
    assert simulate(TRACE, "lru", capacity).blocks == lru_hits(capacity) / TRACE.references


def test_the_oracle_tells_the_sizes_apart() -> None:
    assert sorted({lru_hits(capacity) for capacity in SIZES}) == [lru_hits(capacity) for capacity in SIZES]


@every_size
@pytest.mark.parametrize("policy", policy_names())
def test_no_policy_beats_the_optimum(policy: str, capacity: int) -> None:
    assert simulate(TRACE, policy, capacity).blocks <= simulate(TRACE, OPTIMAL, capacity).blocks


@pytest.mark.parametrize("policy", simulated_policies())
def test_with_room_for_all_only_the_first_of_each_block_misses(policy: str) -> None:
    assert simulate(TRACE, policy, TRACE.unique).blocks == (TRACE.references - TRACE.unique) / TRACE.references


@pytest.mark.parametrize("policy", simulated_policies())
def test_a_block_weighs_by_its_tokens(policy: str) -> None:
    """The second request hits one full block; the third two of which one has 10 tokens."""
    entry = '{"timestamp": 0, "output_length": 0, "input_length": %d, "hash_ids": %s}'
    trace = parse_trace([entry % (522, [1, 2]), entry % (600, [1, 3]), entry % (522, [1, 2])])
    ratios = simulate(trace, policy, 3)
    assert (ratios.blocks, ratios.tokens) == (3 / 6, (512 + 522) / (522 + 600 + 522))


def test_the_progress_adds_up() -> None:
    steps: list[int] = []
    simulate(TRACE, "lru", 10, steps.append)
    assert (len(steps), sum(steps)) == (len(TRACE.requests), TRACE.references)


def test_each_simulation_begins_with_an_empty_cache() -> None:
    assert simulate(TRACE, "arc", 40) == simulate(TRACE, "arc", 40)


def test_a_policy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(StartError, match="there is no eviction policy 'base'"):
        simulate(TRACE, "base", 1)


# The figures that were published for two public traces (README). Who has the files names their folder.
_FOLDER = os.environ.get("KVKEEP_TRACES")
_PUBLISHED = {
    "conversation": (24.6, 31.4, 36.6, 36.6, 36.6, 36.6),
    "synthetic": (18.5, 26.1, 39.6, 50.6, 60.8, 64.0),
}

if _FOLDER:
    FILES = sorted(Path(_FOLDER).glob("*_trace.jsonl"))

    def trace_of(name: str) -> Trace:
        [file] = [file for file in FILES if name in file.name]
        with file.open("rb") as content:
            return parse_trace(content)

    @pytest.mark.parametrize("name", _PUBLISHED)
    def test_the_optimum_of_the_published_traces_is_reproduced(name: str) -> None:
        trace = trace_of(name)
        sizes = [round(trace.unique * percent / 100) for percent in (1, 2, 5, 10, 20, 50)]
        found = tuple(round(100 * simulate(trace, OPTIMAL, size).blocks, 1) for size in sizes)
        assert found == _PUBLISHED[name]
