"""A server that is killed while it writes to its folder: after each start, all that is there is whole, and counted."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.interop.client import MODES, Engine, fresh, prompt
from tests.interop.kv import CHUNK, FUSED_HND, differing
from tests.support.polling import until
from tests.support.server import Server
from tests.support.storage import STORAGES

KILLS = int(os.environ.get("KVKEEP_KILLS", "4"))
"""The proof of a release is 50 of them."""
CHUNKS = 8
LAYOUT = FUSED_HND.with_blocks(256)


@pytest.mark.timeout(60 + 20 * KILLS)
def test_a_server_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    moments = random.Random(KILLS)
    model, stored = fresh("model"), list[tuple[list[int], list[bytes]]]()
    with STORAGES["filesystem"](tmp_path) as storage:
        file = tmp_path / "kvkeep.yaml"
        file.write_text(storage.config(name="far", prefetch={"mode": "wait"}, required=True))
        folder = Path(storage.settings["path"])
        with Server("--chunk-size", str(CHUNK), "--config", str(file)) as server:
            for _ in range(KILLS):
                engine = Engine(server.url, MODES[0], LAYOUT, model=model)
                stored += _store_until_killed(engine, server, moments.uniform(0.0, 0.4))
                server.start()
                # NOTE: Only now: the client waits long for a server that is not there to say goodbye to.
                engine.close()
                _check(server, folder)
            found = _loaded(server, model, stored)
    assert found, "nothing that was stored outlived a kill"


def _store_until_killed(engine: Engine, server: Server, seconds: float) -> list[tuple[list[int], list[bytes]]]:
    """Prompts that were stored in L1, with their bytes, until the server was killed in the midst of it."""
    stored: list[tuple[list[int], list[bytes]]] = []
    assert _store(engine, stored)
    killer = threading.Timer(seconds, server.kill)
    killer.start()
    while killer.is_alive() and _store(engine, stored):
        pass
    killer.join()
    return stored


def _store(engine: Engine, stored: list[tuple[list[int], list[bytes]]]) -> bool:
    tokens, blocks = prompt(CHUNKS * CHUNK), engine.blocks(CHUNKS)
    contents = engine.worker.fill(blocks)
    request = fresh("request")
    engine.worker.submit_store(request, tokens, blocks)
    future = engine.worker.adapter.store_futures.get(request)
    try:
        is_stored = future is None or bool(future.result(timeout=1.0))
    except TimeoutError:
        return False
    engine.worker.adapter.get_finished({request})
    if not is_stored:
        return False
    stored.append((tokens, contents))
    return True


def _check(server: Server, folder: Path) -> None:
    """What the tier says is there is there, whole, and nothing else is."""
    objects = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file() and len(path.name) == 96}
    assert len({*objects.values()}) <= 1, "objects of one size only: all of them are whole"
    until(lambda: _usage(server)[0] == len(objects), f"{len(objects)} objects are counted, not {_usage(server)}")
    occupied = sum(-(-size // 4096) * 4096 for size in objects.values())
    assert _usage(server)[1] == occupied
    others = [path for path in folder.rglob("*") if path.is_file() and path not in objects]
    assert not [path for path in others if "tmp" in path.name], "an orphan stays"


def _usage(server: Server) -> tuple[int, int]:
    status, body = server.get("/api/l2/far")
    assert status == 200, body
    found: dict[str, Any] = body
    return found["used_objects"], found["used_bytes"]


def _loaded(server: Server, model: str, stored: list[tuple[list[int], list[bytes]]]) -> int:
    """Chunks of all prompts that come back, each as it was stored."""
    engine = Engine(server.url, MODES[0], LAYOUT, model=model)
    found = 0
    try:
        for tokens, contents in stored:
            request = fresh("request")
            chunks = engine.scheduler.lookup(request, tokens) // CHUNK
            if chunks:
                blocks = engine.blocks(CHUNKS, first=2)[: chunks * engine.blocks_per_chunk]
                assert engine.worker.retrieve(request, tokens, blocks, end=chunks * CHUNK)
                assert not differing(contents[: len(blocks)], engine.worker.contents(blocks))
            engine.scheduler.end(request)
            found += chunks
    finally:
        engine.close()
    return found
