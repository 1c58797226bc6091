"""A real server with l1.verify, whose shared memory somebody writes to who must not: no client gets to see that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.l1.arena import PREFIX
from tests.faults.workers import BLOCK_BYTES, CHUNK_FLAGS, OBJECT_BYTES, SelfCopying, ServerCopied, arena_of
from tests.support.polling import until
from tests.support.server import Server, http
from tests.support.shm import segments_of

TOKENS = range(48)
"""Three chunks."""
STORED, LOADED = [1, 2, 3, 4, 5, 6], [8, 9, 10, 11, 12, 13]
"""Blocks of a worker that the server copies."""


class VerifyingServer(Server):
    """kvkeep with `l1.verify`, and what more its configuration says."""

    def __init__(self, more: str = "") -> None:
        super().__init__(*CHUNK_FLAGS, l1_size_gb=0.0625)
        config = self.folder / "kvkeep.yaml"
        config.write_text(f"l1: {{verify: true}}\n{more}")
        self.flags = (*self.flags, "--config", str(config))

    def flip(self, content: bytes) -> None:
        """Changes a bit of this object in the arena, wherever it lies: where its first bytes are found."""
        (arena,) = [path for path in segments_of(self.pid) if path.name.startswith(PREFIX)]
        place = Path(arena).read_bytes().find(content[:64])
        assert place >= 0, "it is not there"
        arena_of(arena.name)[place + len(content) // 2] ^= 1

    def has_counted(self, verified: int, corrupt: int) -> None:
        """So many objects, of which so many were corrupt. What is reported follows what was answered."""

        def counted() -> tuple[int, int]:
            l1 = self.get("/api/status")[1]["storage_manager"]["l1_manager"]
            return l1["verified"], l1["corrupt"]

        until(
            lambda: counted() == (verified, corrupt), f"{verified} verified and {corrupt} corrupt objects are counted"
        )

    def explained(self, model: str) -> tuple[int, str | None]:
        """How many leading chunks are there, and why the next one is not."""
        question = json.dumps({"model": model, "tokens": list(TOKENS)}).encode()
        headers = {"Content-Type": "application/json"}
        _, answer = http("POST", f"{self.http_url}/api/cache/lookups", question, headers=headers)
        return answer["hit_chunks"], answer["first_miss"] and answer["first_miss"]["reason"]


def random_bytes(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.fixture
def server() -> Iterator[VerifyingServer]:
    with VerifyingServer() as running:
        yield running


def test_what_the_server_copies_is_not_served_once_it_is_corrupt(server: VerifyingServer) -> None:
    with ServerCopied(server) as worker:
        assert worker.store(TOKENS, STORED)
        expected, before = worker.contents(STORED), worker.contents(LOADED)
        assert worker.lookup(TOKENS) == 3
        assert worker.retrieve(TOKENS, LOADED)
        assert worker.contents(LOADED) == expected
        server.has_counted(3, 0)

        server.flip(worker.contents(STORED[2:4]))
        worker.erase(LOADED)
        assert worker.lookup(TOKENS, "again") == 3
        assert not worker.retrieve(TOKENS, LOADED, "again")
        assert worker.contents(LOADED[2:]) == bytes(len(before) - 2 * BLOCK_BYTES), "a byte of it was served"
        worker.end("again")
        assert server.explained(worker.model) == (1, "quarantined")
        server.has_counted(5, 1)
        until(lambda: "is not what was stored" in server.output(), "the log says so")

        assert worker.store(TOKENS, STORED)
        assert worker.lookup(TOKENS, "then") == 3
        assert worker.retrieve(TOKENS, LOADED, "then")
        assert worker.contents(LOADED) == expected


def test_what_a_worker_copies_is_not_lent_once_it_is_corrupt(server: VerifyingServer) -> None:
    data = random_bytes(3 * OBJECT_BYTES)
    with SelfCopying(server) as worker:
        assert worker.store(TOKENS, data)
        assert worker.lookup(TOKENS) == 3
        assert worker.retrieve(TOKENS) == data
        server.has_counted(3, 0)

        server.flip(data[OBJECT_BYTES : 2 * OBJECT_BYTES])
        assert worker.lookup(TOKENS, "again") == 3
        assert worker.retrieve(TOKENS, "again") is None
        worker.end("again")
        assert server.explained(worker.model) == (1, "quarantined")
        server.has_counted(6, 1)

        assert [slot["length"] for slot in worker.prepare_store(TOKENS)] == [OBJECT_BYTES], "only that one is gone"
        assert worker.fill_and_commit(TOKENS, data[OBJECT_BYTES : 2 * OBJECT_BYTES])
        assert worker.lookup(TOKENS, "then") == 3
        assert worker.retrieve(TOKENS, "then") == data


def test_what_is_corrupt_is_not_written_to_l2(tmp_path: Path) -> None:
    tier = f"l2:\n  - {{type: filesystem, path: {tmp_path}, keep_free: 0, store_policy: write_back}}\n"
    data = random_bytes(3 * OBJECT_BYTES)
    with VerifyingServer(tier) as server, SelfCopying(server) as worker:
        assert worker.store(TOKENS, data)
        server.flip(data[:OBJECT_BYTES])
        assert server.stop() == 0
        files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert data[OBJECT_BYTES : 2 * OBJECT_BYTES] in files, "the second chunk was saved"
        assert data[:64] not in files, "and the first, which is corrupt, was not"


def test_without_the_setting_nothing_is_verified() -> None:
    data = random_bytes(3 * OBJECT_BYTES)
    with Server(*CHUNK_FLAGS, l1_size_gb=0.0625) as server, SelfCopying(server) as worker:
        assert worker.store(TOKENS, data)
        assert worker.retrieve(TOKENS) == data
        l1 = server.get("/api/status")[1]["storage_manager"]["l1_manager"]
        assert (l1["verified"], l1["corrupt"]) == (0, 0)
