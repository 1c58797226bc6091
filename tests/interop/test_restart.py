"""A server that restarts on the same port: the clients notice by their heartbeats, register again, and go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.interop.client import ENGINE_COPIES, SERVER_COPIES, Engine, fresh, prompt
from tests.interop.kv import CHUNK, differing
from tests.support.polling import until
from tests.support.server import Server, ServerProcess

MakeEngine = Callable[..., Engine]

NEVER = 600.0
"""A heartbeat interval so long that only the test itself makes the client ping."""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with Server("--chunk-size", str(CHUNK), l1_size_gb=0.125) as running:
        yield running


def store_and_load(engine: Engine, tokens: list[int]) -> bool:
    """Whether a prompt that was not cached is stored, found and loaded back byte for byte."""
    stored_in, loaded_into, request = engine.blocks(2), engine.blocks(2, first=20), fresh("request")
    assert engine.scheduler.peek(tokens) == 0
    stored = engine.worker.fill(stored_in)
    assert engine.worker.store(fresh("request"), tokens, stored_in)
    assert engine.scheduler.lookup(request, tokens) == len(tokens)
    assert engine.worker.retrieve(request, tokens, loaded_into)
    engine.scheduler.end(request)
    return differing(engine.worker.contents(loaded_into), stored) == []


def test_a_restart_between_two_pings_is_noticed(server: ServerProcess, make_engine: MakeEngine) -> None:
    """The client sees no outage at all: only the first answer to a ping can tell it that its registration is gone."""
    engines = [make_engine(mode, heartbeat=NEVER) for mode in (SERVER_COPIES, ENGINE_COPIES)]
    prompts = [prompt(2 * CHUNK) for _ in engines]
    for engine, tokens in zip(engines, prompts, strict=True):
        assert store_and_load(engine, tokens)

    server.restart()
    for engine in engines:
        engine.worker.beat()
        engine.scheduler.beat()
        assert not engine.worker.adapter.is_healthy
        engine.worker.beat()
        engine.scheduler.beat()
        assert engine.worker.adapter.is_healthy
        assert engine.scheduler.adapter.is_healthy

    for engine, tokens in zip(engines, prompts, strict=True):
        assert store_and_load(engine, tokens)


def test_an_outage_is_lived_through(server: ServerProcess, make_engine: MakeEngine) -> None:
    """With its own short heartbeats and nobody's help the client loses the server and finds it again."""
    engines = [make_engine(mode, heartbeat=1.0) for mode in (SERVER_COPIES, ENGINE_COPIES)]
    prompts = [prompt(2 * CHUNK) for _ in engines]
    for engine, tokens in zip(engines, prompts, strict=True):
        assert store_and_load(engine, tokens)
    instances = {engine.worker.instance_id for engine in engines}

    server.kill()
    for engine in engines:
        until(lambda adapter=engine.worker.adapter: not adapter.is_healthy, "the worker misses the server")
        until(lambda adapter=engine.scheduler.adapter: not adapter.is_healthy, "the scheduler misses the server")
        assert engine.scheduler.lookup(fresh("request"), prompt(CHUNK)) == 0
        assert not engine.worker.retrieve(fresh("request"), prompt(CHUNK), engine.blocks(1))
    server.start()

    for engine, tokens in zip(engines, prompts, strict=True):
        until(lambda adapter=engine.worker.adapter: adapter.is_healthy, "the worker is back")
        until(lambda adapter=engine.scheduler.adapter: adapter.is_healthy, "the scheduler is back")
        assert store_and_load(engine, tokens)
    _, status = server.get("/api/status")
    assert instances <= set(status["registered_gpu_ids"])


def test_transfers_the_old_server_never_answered_are_not_waited_for(
    server: ServerProcess, make_engine: MakeEngine
) -> None:
    """Their answers died with it, and the client has no timeout for them: only an unhealthy ping frees their blocks."""
    engine = make_engine(SERVER_COPIES, heartbeat=NEVER)
    tokens = prompt(2 * CHUNK)
    assert store_and_load(engine, tokens)
    request = fresh("request")
    assert engine.scheduler.lookup(request, tokens) == 2 * CHUNK

    os.kill(server.pid, signal.SIGSTOP)
    store = fresh("request")
    engine.worker.submit_store(store, prompt(CHUNK), engine.blocks(1))
    engine.worker.submit_retrieve(request, tokens, engine.blocks(2, first=20))
    server.restart(gently=False)
    assert store in engine.worker.adapter.store_futures
    assert request in engine.worker.adapter.retrieve_futures

    engine.worker.beat()
    assert engine.worker.adapter.get_finished({store}) == ({store}, {request})
    assert engine.worker.adapter.get_failed_request_ids() == {request}
    engine.worker.beat()
    engine.scheduler.beat()
    engine.scheduler.beat()
    assert store_and_load(engine, prompt(2 * CHUNK))


def test_lookups_before_the_workers_are_back_hit_nothing(server: ServerProcess, make_engine: MakeEngine) -> None:
    engine = make_engine(SERVER_COPIES, heartbeat=NEVER)
    tokens = prompt(2 * CHUNK)
    assert store_and_load(engine, tokens)

    server.restart()
    assert engine.scheduler.peek(tokens) == 0
    assert not engine.worker.store(fresh("request"), tokens, engine.blocks(2))
    assert engine.scheduler.peek(tokens) == 0
