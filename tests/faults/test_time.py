"""A real server that stands still for longer than its patience with clients, while they go on living."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from engine.awake import LONGEST_PAUSE
from engine.wire import messages as m
from tests.faults.workers import CHUNK_FLAGS, SelfCopying, ServerCopied
from tests.support.polling import until
from tests.support.server import Server

PATIENCE = 2.0
"""Of the server, in seconds, with workers and with leases."""
STANDSTILL = max(PATIENCE, LONGEST_PAUSE) + 1.0
LIVENESS = f"server: {{worker_timeout: {PATIENCE}, lease_ttl: {PATIENCE}, session_ttl: {PATIENCE}}}\n"
TOKENS = range(32)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(*CHUNK_FLAGS, l1_size_gb=0.0625)
    config = running.folder / "kvkeep.yaml"
    config.write_text(LIVENESS)
    running.flags = (*running.flags, "--config", str(config))
    with running:
        yield running


def stand_still(server: Server, *workers: ServerCopied | SelfCopying) -> int:
    """Stops the process for a while, in which these workers go on pinging; returns how many pings each has sent."""
    os.kill(server.pid, signal.SIGSTOP)
    end, sent = time.monotonic() + STANDSTILL, 0
    try:
        while time.monotonic() < end:
            for worker in workers:
                worker.client.start(m.Ping(worker.instance_id))
            sent, next_ping = sent + 1, time.monotonic() + 0.5
            until(lambda due=next_ping: time.monotonic() > due, "it is time for another ping")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    return sent


def known(server: Server) -> set[int]:
    return {worker["instance_id"] for worker in server.get("/api/workers")[1]["workers"]}


def test_nobody_is_reaped_by_a_server_that_stood_still(server: Server) -> None:
    with ServerCopied(server, 1) as copied, SelfCopying(server, 2) as lending:
        assert copied.store(TOKENS, [1, 2, 3, 4])
        assert lending.prepare_store(TOKENS)
        assert copied.ping()
        assert lending.ping()
        assert copied.lookup(TOKENS) == 2
        sent = stand_still(server, copied)
        answers = [copied.client.receive() for _ in range(sent)]
        assert all(answer[-1] == b"\xc3" for answer in answers), "a ping is answered False"
        assert known(server) == {1, 2}, "also the one whose pings would have come only now"
        assert copied.retrieve(TOKENS, [5, 6, 7, 8]), "what was promised before is kept"
        assert copied.contents([5, 6, 7, 8]) == copied.contents([1, 2, 3, 4])
        assert lending.commit_store(TOKENS), "what was lent before can be committed"


def test_who_is_silent_to_a_server_that_is_awake_is_reaped_afterwards(server: Server) -> None:
    with ServerCopied(server, 1) as worker:
        assert worker.ping()
        stand_still(server)
        assert known(server) == {1}
        worker.client.close()
        until(lambda: known(server) == set(), "the silent worker is gone")
