"""What a replay says of a policy is what the server does with it, request by request."""

from __future__ import annotations

from itertools import chain

import pytest

from engine.discovery import policy_maker, policy_names
from engine.simulation.replay import Replay
from tests.support.conversations import conversations
from tests.unit.engine.driver import Driver

CHUNK = 16
REQUESTS = 2000
CAPACITY = 300


def tokens(blocks: list[int]) -> list[int]:
    """Equal for equal blocks."""
    return list(chain.from_iterable([block] * CHUNK for block in blocks))


def served(driver: Driver, blocks: list[int]) -> int:
    """Serves a request as an engine does; returns how many leading chunks were there."""
    prompt = tokens(blocks)
    hits = driver.lookup(prompt)
    some = [list(range(1, 9)) * (len(blocks) // 4 + 1)]
    if hits:
        driver.retrieve(prompt[: hits * CHUNK], block_ids=[some[0][: 2 * hits]])
    if hits < len(blocks):
        driver.store(prompt, start=hits * CHUNK, block_ids=[some[0][: 2 * (len(blocks) - hits)]])
    driver.end()
    return hits


@pytest.mark.parametrize("name", policy_names())
def test_the_server_hits_what_the_replay_hits(name: str) -> None:
    maker = policy_maker(name)
    driver, replay = Driver(CAPACITY, make_policy=maker), Replay(maker(CAPACITY), CAPACITY)
    driver.register()
    requests = conversations(7, REQUESTS, at_once=60)
    hits = [(served(driver, blocks), replay.request(blocks)) for blocks in requests]
    assert [server for server, _ in hits] == [replayed for _, replayed in hits]
    assert driver.report().l1.evicted_objects > 5 * CAPACITY
    assert 0 < sum(server for server, _ in hits) < sum(map(len, requests)) / 2
