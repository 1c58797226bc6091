"""L2 behind a real client: what L1 has lost comes back, also to another server, and as it was stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.interop.client import MODES, Engine, fresh, prompt
from tests.interop.kv import CHUNK, differing
from tests.support.polling import until
from tests.support.server import Server
from tests.support.storage import STORAGES, Storage

CHUNKS = 6

Start = Callable[[], Server]


@pytest.fixture(scope="module", params=sorted(STORAGES))
def storage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """One kind of storage, running; servers that use it share what is stored."""
    with STORAGES[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def start(storage: Storage, tmp_path: Path) -> Iterator[Start]:
    """Starts servers that have this storage as their only tier."""
    file = tmp_path / "kvkeep.yaml"
    file.write_text(storage.config(name="far", prefetch={"mode": "wait"}, required=True))
    with ExitStack() as servers:
        yield lambda: servers.enter_context(Server("--chunk-size", str(CHUNK), "--config", str(file)))


def saved(server: Server, objects: int) -> None:
    """Waits until so many objects were written behind the stores."""
    until(lambda: _tier(server)["saved_objects"] >= objects, f"{objects} objects saved")


def loads_back(engine: Engine, model_tokens: list[int], stored: list[bytes], first: int = 2) -> bool:
    """Whether all of a prompt is a hit, and its bytes are those that were stored."""
    request = fresh("request")
    if engine.scheduler.lookup(request, model_tokens) != CHUNKS * CHUNK:
        return False
    blocks = engine.blocks(CHUNKS, first=first)
    assert engine.worker.retrieve(request, model_tokens, blocks)
    engine.scheduler.end(request)
    assert not differing(stored, engine.worker.contents(blocks))
    return True


@pytest.mark.parametrize("mode", MODES)
def test_what_l1_has_lost_comes_back(start: Start, mode: str) -> None:
    server = start()
    engine = Engine(server.url, mode)
    try:
        tokens, blocks = prompt(CHUNKS * CHUNK), engine.blocks(CHUNKS)
        stored = engine.worker.fill(blocks)
        assert engine.worker.store(fresh("request"), tokens, blocks)
        saved(server, CHUNKS)
        assert server.post("/api/clear-cache") == (200, {"status": "ok"})
        assert loads_back(engine, tokens, stored)
        assert _tier(server)["loaded_objects"] == CHUNKS
        assert loads_back(engine, tokens, stored)
        assert _tier(server)["loaded_objects"] == CHUNKS, "the second time it is in L1"
    finally:
        engine.close()


def test_a_restarted_server_and_another_one_find_what_was_stored(start: Start) -> None:
    first, second = start(), start()
    model = fresh("model")
    engine = Engine(first.url, MODES[0], model=model)
    try:
        tokens, blocks = prompt(CHUNKS * CHUNK), engine.blocks(CHUNKS)
        stored = engine.worker.fill(blocks)
        assert engine.worker.store(fresh("request"), tokens, blocks)
        saved(first, CHUNKS)
    finally:
        engine.close()
    first.restart()
    for server in (first, second):
        other = Engine(server.url, MODES[0], model=model)
        try:
            assert loads_back(other, tokens, stored)
        finally:
            other.close()


def _tier(server: Server) -> dict[str, Any]:
    status, body = server.get("/api/l2/far")
    assert status == 200, body
    found: dict[str, Any] = body
    return found
