"""Two ranks in two processes, each with its own shard of every chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.interop.client import Scheduler, fresh, prompt
from tests.interop.kv import CHUNK, FUSED_HND, differing
from tests.interop.remote import RemoteWorker, WorkerHost, together
from tests.support.server import ServerProcess

PLACE = [9, 3, 12, 5]
TARGET = [30, 25, 22, 40]


@dataclass
class Pair:
    """One scheduler and its two ranks."""

    scheduler: Scheduler
    ranks: list[RemoteWorker]


@pytest.fixture
def pair(server: ServerProcess, hosts: tuple[WorkerHost, WorkerHost], mode: str) -> Iterator[Pair]:
    model = fresh("tp-model")
    ranks = [
        host.worker(server.url, model, FUSED_HND, mode, rank=rank, world=len(hosts)) for rank, host in enumerate(hosts)
    ]
    scheduler = Scheduler(server.url, model, world=len(hosts))
    yield Pair(scheduler, ranks)
    scheduler.close()
    for rank in ranks:
        rank.close()


def test_each_rank_gets_its_own_shard_back(pair: Pair) -> None:
    tokens = prompt(2 * CHUNK)
    shards = together(pair.ranks, "fill", PLACE)
    assert len(differing(*shards)) == len(PLACE)
    assert together(pair.ranks, "store", fresh("request"), tokens, PLACE) == [True, True]

    request = fresh("request")
    assert pair.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert together(pair.ranks, "retrieve", request, tokens, TARGET) == [True, True]
    pair.scheduler.end(request)

    for rank, shard in zip(pair.ranks, shards, strict=True):
        assert differing(rank.contents(TARGET), shard) == []


def test_a_chunk_counts_only_with_all_its_shards(pair: Pair) -> None:
    tokens, request = prompt(2 * CHUNK), fresh("request")
    together(pair.ranks, "fill", PLACE)
    first, second = pair.ranks
    assert first.store(request, tokens, PLACE)
    assert pair.scheduler.peek(tokens) == 0
    assert second.store(request, tokens, PLACE[:2], end=CHUNK)

    assert pair.scheduler.peek(tokens) == CHUNK


def test_one_rank_failing_to_find_its_shard_does_not_disturb_the_other(pair: Pair) -> None:
    tokens, request = prompt(2 * CHUNK), fresh("request")
    shard = pair.ranks[0].fill(PLACE)
    assert pair.ranks[0].store(request, tokens, PLACE)
    assert pair.ranks[1].store(request, tokens, PLACE[:2], end=CHUNK)

    request = fresh("request")
    assert pair.scheduler.lookup(request, tokens) == CHUNK
    assert together(pair.ranks, "retrieve", request, tokens, TARGET[:2], end=CHUNK) == [True, True]
    assert not pair.ranks[1].retrieve(fresh("request"), tokens, TARGET)
    assert differing(pair.ranks[0].contents(TARGET[:2]), shard[:2]) == []


def test_a_killed_rank_leaves_the_server_serving(server: ServerProcess, mode: str) -> None:
    host, model = WorkerHost(), fresh("tp-model")
    tokens = prompt(CHUNK)
    worker = host.worker(server.url, model, FUSED_HND, mode)
    shard = worker.fill(PLACE[:2])
    assert worker.store(fresh("request"), tokens, PLACE[:2])
    host.kill()

    other_host = WorkerHost()
    other = other_host.worker(server.url, model, FUSED_HND, mode)
    scheduler, request = Scheduler(server.url, model), fresh("request")
    assert scheduler.lookup(request, tokens) == CHUNK
    assert other.retrieve(request, tokens, TARGET[:2])
    assert differing(other.contents(TARGET[:2]), shard) == []
    scheduler.close()
    other_host.close()
