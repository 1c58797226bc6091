"""An MLA model: every rank holds the same latent cache, one of them stores it, all of them load it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.interop.client import Scheduler, Worker, fresh, prompt
from tests.interop.kv import CHUNK, LATENT, differing
from tests.interop.remote import RemoteWorker, WorkerHost, together
from tests.support.server import ServerProcess

PLACE = [9, 3, 12, 5]
TARGET = [30, 25, 22, 40]


@dataclass
class Readers:
    """One scheduler and the ranks that share its objects."""

    scheduler: Scheduler
    ranks: list[RemoteWorker]


@pytest.fixture
def readers(server: ServerProcess, hosts: tuple[WorkerHost, WorkerHost], mode: str) -> Iterator[Readers]:
    model = fresh("mla-model")
    ranks = [
        host.worker(server.url, model, LATENT, mode, rank=rank, world=len(hosts), mla=True)
        for rank, host in enumerate(hosts)
    ]
    scheduler = Scheduler(server.url, model, world=len(hosts), mla=True)
    yield Readers(scheduler, ranks)
    scheduler.close()
    for rank in ranks:
        rank.close()


def test_what_the_first_rank_stores_every_rank_loads(readers: Readers) -> None:
    tokens = prompt(2 * CHUNK)
    stored, _ = together(readers.ranks, "fill", PLACE)
    # The client of the second rank stores nothing: the object is the same.
    together(readers.ranks, "store", fresh("request"), tokens, PLACE)

    request = fresh("request")
    assert readers.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert together(readers.ranks, "retrieve", request, tokens, TARGET) == [True, True]
    readers.scheduler.end(request)

    for rank in readers.ranks:
        assert differing(rank.contents(TARGET), stored) == []


def test_the_last_reader_still_loads_after_a_clear(readers: Readers) -> None:
    """One lookup leases every chunk for all its readers; the first of them to load releases its own share only."""
    tokens = prompt(2 * CHUNK)
    first, last = readers.ranks
    stored = first.fill(PLACE)
    assert first.store(fresh("request"), tokens, PLACE)

    request = fresh("request")
    assert readers.scheduler.lookup(request, tokens) == 2 * CHUNK
    assert first.retrieve(request, tokens, TARGET)
    assert readers.scheduler.adapter.reset_cache()
    assert last.retrieve(request, tokens, TARGET)

    assert differing(last.contents(TARGET), stored) == []


def test_many_readers_of_one_object(server: ServerProcess, mode: str) -> None:
    model, world, tokens = fresh("mla-model"), 4, prompt(2 * CHUNK)
    ranks = [Worker(server.url, model, LATENT, mode, rank=rank, world=world, mla=True) for rank in range(world)]
    scheduler = Scheduler(server.url, model, world=world, mla=True)
    stored = ranks[0].fill(PLACE)
    assert ranks[0].store(fresh("request"), tokens, PLACE)

    for _ in range(2):
        request = fresh("request")
        assert scheduler.lookup(request, tokens) == 2 * CHUNK
        for rank in ranks:
            rank.fill(TARGET)
            assert rank.retrieve(request, tokens, TARGET)
            assert differing(rank.contents(TARGET), stored) == []
        scheduler.end(request)
    scheduler.close()
    for rank in ranks:
        rank.close()
