"""Workers killed, stopped or cut off at any moment: what they had not committed is never seen, and comes back."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.wire import messages as m
from tests.contract.gated import GATE
from tests.faults.proxy import Proxy
from tests.faults.running import (
    COMES_BACK,
    PlainServer,
    Running,
    flags,
    l1,
    server_with,
    until_nobody_is_there,
    workers,
)
from tests.faults.workload import CHUNKS, MODES, PROMPTS, EngineCopies, Load, ServerCopies, prompt
from tests.support.polling import until
from tests.support.server import Server
from tests.unit.engine.support import key, packed

ROUNDS = 8
"""Of the random kills; in each a worker of either mode is killed."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """L1 has room for most prompts, so that there is always something to evict."""
    with server_with(tmp_path_factory.mktemp("server"), size="1MiB") as running:
        yield running
        assert "Traceback" not in running.output()


@pytest.fixture(autouse=True)
def _ends_with_nobody(server: Server) -> Iterator[None]:
    yield
    until_nobody_is_there(server)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def loads(server: Server) -> Iterator[dict[str, Load]]:
    """A living worker of each mode."""
    made = {mode: kind(server.url, 1000 + index) for index, (mode, kind) in enumerate(MODES.items())}
    for each in made.values():
        each.register()
    yield made
    for each in made.values():
        each.client.ask(m.UnregisterKVCache(each.instance_id))
        each.close()


def found(load: Load, number: int) -> int:
    """Chunks of a prompt that a lookup finds."""
    load.client.ask(m.Lookup(key(prompt(number), model_name=load.model, request_id="found"), packed(1)))
    hits = load.client.ask(m.QueryPrefetchStatus("found"))
    load.client.ask(m.EndSession("found"))
    assert isinstance(hits, int)
    return hits


def test_what_a_killed_worker_had_half_written_is_never_seen(server: Server, loads: dict[str, Load]) -> None:
    reader = loads[EngineCopies.mode]
    server.post("/api/clear-cache")
    with Running(server.url, EngineCopies.mode, 1, "prepared") as worker:
        worker.begin()
        until(lambda: l1(server)["reserved_object_count"] == CHUNKS, "slots are lent to it")
        worker.kill()
        until(lambda: not l1(server)["reserved_object_count"], "its slots are back", COMES_BACK)
    assert found(reader, 0) == 0
    assert reader.once(0, "again") == (0, True)
    assert reader.once(0, "and again") == (CHUNKS, True)


def test_what_a_killed_worker_was_reading_can_be_evicted_again(server: Server) -> None:
    with Running(server.url, EngineCopies.mode, 1, "pinned") as worker:
        worker.begin()
        until(lambda: l1(server)["leased_object_count"] >= CHUNKS, "slots are lent to it")
        worker.kill()
    until_nobody_is_there(server)


def test_the_segment_of_a_killed_worker_is_removed(server: Server) -> None:
    with Running(server.url, ServerCopies.mode, 1, "registered") as worker:
        worker.begin()
        assert len(worker.segments) == 1
        worker.kill()
        assert len(worker.segments) == 1
        until(lambda: not worker.segments, "its segment is removed", COMES_BACK)
    until(lambda: f"removed /dev/shm/lmcache_kv_{worker.pid}_0" in server.output(), "the log says so")


def test_who_is_idle_and_lives_is_never_given_up(server: Server, mode: str) -> None:
    """It never pings, as a worker before its first transfer, for several times as long as the silent have."""
    with Running(server.url, mode, 1, "registered") as worker:
        worker.begin()
        segments = worker.segments
        until(lambda: workers(server)[0]["silent_seconds"] > 3.5, "it is silent")
        [known] = workers(server)
        assert (known["state"], known["has_pinged"]) == ("ready", False)
        assert worker.segments == segments
        worker.kill()


def test_who_is_stopped_while_it_writes_keeps_what_was_lent_to_it(server: Server, loads: dict[str, Load]) -> None:
    """Its slots must not have a new owner: it goes on writing as soon as it runs again, whenever that is."""
    reader = loads[EngineCopies.mode]
    server.post("/api/clear-cache")
    with Running(server.url, EngineCopies.mode, 1, "prepared") as worker:
        worker.begin()
        worker.signal(signal.SIGSTOP)
        for number in range(1, PROMPTS):
            reader.once(number, f"r{number}")
        until(lambda: max(each["silent_seconds"] for each in workers(server)) > 3.5, "it is silent")
        assert l1(server)["reserved_object_count"] == CHUNKS
        worker.signal(signal.SIGCONT)
        worker.say()
        assert worker.line() == "committed"
        worker.kill()
    assert reader.once(0, "again") == (CHUNKS, True)


def test_a_connection_that_is_cut_is_not_the_end_of_its_worker(tmp_path: Path) -> None:
    """It has its time to come back, and what it was lent stays lent."""
    with (
        server_with(tmp_path, worker_timeout=30) as server,
        Proxy(server.port) as proxy,
        Running(proxy.url, EngineCopies.mode, 1, "prepared") as worker,
    ):
        worker.begin()
        proxy.cut()
        until(lambda: proxy.accepted == 2, "it has connected again")
        worker.say()
        assert worker.line() == "committed"
        until(lambda: l1(server)["total_object_count"] == CHUNKS, "all of it is there")


class GatedServer(PlainServer):
    """One whose copies wait until a file is there."""

    def __init__(self, gate: Path, *flags: str) -> None:
        super().__init__(*flags)
        self.gate = gate

    def command(self) -> list[str]:
        command = super().command()
        return [command[0], "-m", "tests.contract.gated", *command[3:]]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), GATE: str(self.gate)}


def test_who_is_killed_in_the_middle_of_a_copy_costs_nobody_anything(tmp_path: Path) -> None:
    """What is copied is what it had asked to be stored: its segment stays until the copy has ended."""
    gate = tmp_path / "gate"
    with GatedServer(gate, *flags(tmp_path)) as server:
        with Running(server.url, ServerCopies.mode, 1, "copying") as worker:
            worker.begin()
            until(lambda: server.get("/api/status")[1]["running_transfers"] == 1, "the copy runs")
            worker.kill()
            until(lambda: not workers(server), "it is given up", COMES_BACK)
            assert len(worker.segments) == 1
            gate.touch()
            until(lambda: not worker.segments, "its segment is removed")
        reader = ServerCopies(server.url, 2)
        reader.register()
        assert reader.once(0, "r") == (CHUNKS, True)
        reader.close()


@pytest.mark.parametrize("seed", range(ROUNDS // 4))
def test_workers_killed_at_any_moment_leave_right_bytes_and_nothing_else(
    server: Server, loads: dict[str, Load], seed: int
) -> None:
    chance, gone = random.Random(seed), []
    doomed = [Running(server.url, mode, 10 * seed + index) for index in range(4) for mode in MODES]
    try:
        for each in doomed:
            each.begin()
        while doomed:
            worker = doomed.pop(chance.randrange(len(doomed)))
            until_then = time.monotonic() + chance.random() * 0.1
            while time.monotonic() < until_then:
                for load in loads.values():
                    load.once(chance.randrange(PROMPTS), "reader")
            worker.kill()
            gone.append(worker)
        until(lambda: not any(worker.segments for worker in gone), "their segments are removed", COMES_BACK)
    finally:
        for each in doomed:
            each.kill()
    for load in loads.values():
        assert sum(load.once(number, "last")[0] for number in range(PROMPTS)) > 0


def test_the_requests_of_a_killed_scheduler_end(server: Server, loads: dict[str, Load]) -> None:
    load = loads[ServerCopies.mode]
    load.once(0, "stored")
    scheduler = ServerCopies(server.url, 77)
    scheduler.client.ask(m.Lookup(key(prompt(0), model_name=load.model, request_id="promised"), packed(1)))
    until(lambda: l1(server)["leased_object_count"] == CHUNKS, "they are promised")
    scheduler.client.close()
    until(lambda: not l1(server)["leased_object_count"], "nothing is promised any more", COMES_BACK)
