"""L2 when its storage fails: every request is answered in time, no byte is wrong, and it recovers by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.client import MODES, Engine, fresh, prompt
from tests.interop.kv import CHUNK, differing
from tests.support.polling import until
from tests.support.server import Server
from tests.support.storage import STORAGES, Process, Storage

CHUNKS = 4
IN_TIME = 10.0
"""Seconds for an answer that the configuration below bounds to half a second; the rest is for a busy machine."""
PREFETCH = {"mode": "timeout", "base_ms": 400, "per_1024_tokens_ms": 100, "cap_ms": 500}


class Bench:
    """A server with one tier on a storage, and an engine that asks it."""

    def __init__(self, server: Server, engine: Engine, storage: Storage) -> None:
        self.server = server
        self.engine = engine
        self.storage = storage

    @property
    def process(self) -> Process:
        assert self.storage.process is not None
        return self.storage.process

    def tier(self) -> dict[str, Any]:
        status, body = self.server.get("/api/l2/far")
        assert status == 200, body
        found: dict[str, Any] = body
        return found

    def store(self) -> tuple[list[int], list[bytes]]:
        """A new prompt, stored in L1, and its bytes."""
        tokens, blocks = prompt(CHUNKS * CHUNK), self.engine.blocks(CHUNKS)
        contents = self.engine.worker.fill(blocks)
        assert self.engine.worker.store(fresh("request"), tokens, blocks)
        return tokens, contents

    def saved(self) -> tuple[list[int], list[bytes]]:
        """A new prompt that is in L2 only."""
        until(lambda: self.tier()["waiting_saves"] == 0, "what was stored before is in L2, or was given up")
        before = self.tier()["saved_objects"]
        stored = self.store()
        until(lambda: self.tier()["saved_objects"] >= before + CHUNKS, "it is in L2")
        self.forget()
        return stored

    def forget(self) -> None:
        assert self.server.post("/api/clear-cache") == (200, {"status": "ok"})

    def hits(self, tokens: list[int], contents: list[bytes]) -> int:
        """Chunks that a lookup finds in time; what it finds is loaded, and every byte is the right one."""
        request, began = fresh("request"), time.monotonic()
        chunks = self.engine.scheduler.lookup(request, tokens) // CHUNK
        assert time.monotonic() - began < IN_TIME
        if chunks:
            blocks = self.engine.blocks(CHUNKS, first=2)[: chunks * self.engine.blocks_per_chunk]
            assert self.engine.worker.retrieve(request, tokens, blocks, end=chunks * CHUNK)
            assert not differing(contents[: len(blocks)], self.engine.worker.contents(blocks))
        self.engine.scheduler.end(request)
        return chunks

    def recovers(self, tokens: list[int], contents: list[bytes]) -> None:
        """It is as good as before, with the same processes."""
        pid = self.server.pid
        until(lambda: self.tier()["is_healthy"], "the tier is healthy again", 60.0)
        if not self.storage.keeps:
            tokens, contents = self.saved()
        until(lambda: self.hits(tokens, contents) == CHUNKS, "it is a hit again", 60.0)
        assert self.server.pid == pid


@contextmanager
def bench(storage: Storage, folder: Path, **settings: Any) -> Iterator[Bench]:
    file = folder / "kvkeep.yaml"
    file.write_text(storage.config(**{"name": "far", "prefetch": PREFETCH, **settings}))
    with Server("--chunk-size", str(CHUNK), "--config", str(file)) as server:
        engine = Engine(server.url, MODES[0])
        try:
            made = Bench(server, engine, storage)
            until(lambda: made.tier()["is_healthy"], "the tier is open")
            yield made
        finally:
            engine.close()


@pytest.fixture(params=[name for name in sorted(STORAGES) if name != "filesystem"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Behind each kind of storage that has a server."""
    (tmp_path / "storage").mkdir()
    with STORAGES[request.param](tmp_path / "storage") as storage, bench(storage, tmp_path) as made:
        yield made


def test_a_storage_that_is_paused_killed_and_started_again(served: Bench) -> None:
    stored = served.saved()

    served.process.pause()
    try:
        for _ in range(3):
            assert served.hits(*stored) in range(CHUNKS + 1)
            served.store()
            served.forget()
    finally:
        served.process.resume()
    served.recovers(*stored)

    stored = served.saved()
    served.process.kill()
    for _ in range(3):
        assert served.hits(*stored) == 0
        served.store()
        served.forget()
    until(lambda: not served.tier()["is_healthy"], "the tier knows")
    served.process.start()
    served.recovers(*stored)
