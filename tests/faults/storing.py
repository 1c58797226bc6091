"""An engine that stores prompts and checks every byte that it gets back, in time; and a server with one tier for it."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import numpy as np

from engine.wire import messages as m
from tests.contract.test_reload import FromFile
from tests.contract.worker import BLOCK_TOKENS, Worker
from tests.support.server import ServerProcess
from tests.unit.engine.support import HANDLE, key, packed

CHUNK_TOKENS = 16
CHUNKS = 4
"""Of a prompt."""
BLOCKS = CHUNKS * CHUNK_TOKENS // BLOCK_TOKENS
"""Of a prompt. The KV cache has twice as many: those that are stored, and those that are retrieved."""
BLOCK_BYTES = 64 << 10
OBJECT_BYTES = BLOCK_BYTES * CHUNK_TOKENS // BLOCK_TOKENS
IN_TIME = 10.0
"""Seconds for an answer that `PREFETCH` bounds to half a second; the rest is for a busy machine."""
PREFETCH: dict[str, Any] = {"mode": "timeout", "base_ms": 400, "per_1024_tokens_ms": 100, "cap_ms": 500}
_requests = count()


class StoringEngine(Worker):
    """Ready while its context lasts. Prompts are numbers; each has its own tokens and bytes."""

    def __init__(self, server: ServerProcess, instance_id: int = 1) -> None:
        super().__init__(server, "m", instance_id, blocks=2 * BLOCKS, block_bytes=BLOCK_BYTES)

    def store_prompt(self, prompt: int) -> None:
        """Stores a prompt, which has to succeed in time."""
        self._blocks()[:BLOCKS] = contents(prompt)
        wanted = key(tokens(prompt), worker_id=0, request_id=f"store {next(_requests)}")
        began = time.monotonic()
        stored = self._client.ask(m.Store(wanted, self._instance_id, [list(range(BLOCKS))], HANDLE))
        assert time.monotonic() - began < IN_TIME
        assert stored[-1] is True, stored

    def hits(self, prompt: int) -> int:
        """Chunks that a lookup finds in time. What it finds is retrieved, and every byte is the right one."""
        request, began = f"hits {next(_requests)}", time.monotonic()
        assert self._client.ask(m.Lookup(key(tokens(prompt), request_id=request), packed(1))) is None
        while (found := self._client.ask(m.QueryPrefetchStatus(request))) is None:
            assert time.monotonic() - began < IN_TIME
        assert time.monotonic() - began < IN_TIME
        if found:
            self._retrieve(prompt, found, request)
        self._client.ask(m.EndSession(request))
        assert isinstance(found, int)
        return found

    def _retrieve(self, prompt: int, chunks: int, request: str) -> None:
        blocks = chunks * CHUNK_TOKENS // BLOCK_TOKENS
        place = self._blocks()[BLOCKS : BLOCKS + blocks]
        place[:] = 0
        wanted = key(tokens(prompt), end=chunks * CHUNK_TOKENS, worker_id=0, request_id=request)
        targets = [list(range(BLOCKS, BLOCKS + blocks))]
        got = self._client.ask(m.Retrieve(wanted, self._instance_id, targets, HANDLE, 0))
        assert got[-1] is True, got
        assert np.array_equal(place, contents(prompt)[:blocks]), f"prompt {prompt} came back with other bytes"

    def _blocks(self) -> Any:
        return self._segment.bytes.reshape(2 * BLOCKS, BLOCK_BYTES)


class OneTier:
    """A server with one tier, named far, and an engine."""

    def __init__(self, server: FromFile, engine: StoringEngine) -> None:
        self.server = server
        self.engine = engine

    def tier(self) -> dict[str, Any]:
        status, body = self.server.get("/api/l2/far")
        assert status == 200, body
        found: dict[str, Any] = body
        return found


def tokens(prompt: int) -> list[int]:
    return list(range(1000 * prompt, 1000 * prompt + CHUNKS * CHUNK_TOKENS))


def contents(prompt: int) -> Any:
    """The bytes of a prompt's blocks, one row for each."""
    return np.random.default_rng(prompt).integers(0, 256, (BLOCKS, BLOCK_BYTES), np.uint8)
