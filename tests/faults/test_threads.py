"""A defect in each thread of a real server: what goes on, what is counted, what clients and operators see."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import zmq

from engine.wire import messages as m
from tests.faults.broken import FAULTS, HOLD, RESTARTED
from tests.support.polling import until
from tests.support.server import Server
from tests.support.shm import segments_of
from tests.unit.engine.support import HANDLE, Client, Segment, cpu_tensor, key, packed, register, unpacked

LIVEZ, VERBOSE = "/api/livez", "/api/readyz?verbose"
CONFIG = """
server: {chunk_size: 16}
l1: {size: 64MiB}
advisor: {enabled: true}
l2:
  - {type: memory, name: memory}
"""
PROMPT = range(16)
numbers = count(1)
STORE = m.Store(key(PROMPT, worker_id=0), 1, [[1, 2]], HANDLE)


class BrokenServer(Server):
    """kvkeep with faults that a test arms."""

    def __init__(self, faults: Path) -> None:
        self.faults = faults
        (faults / "kvkeep.yaml").write_text(CONFIG)
        super().__init__("--config", str(faults / "kvkeep.yaml"))

    def command(self) -> list[str]:
        arguments = super().command()
        assert arguments[3] == "--l1-size-gb"
        return [sys.executable, "-m", "tests.faults.broken", *arguments[5:]]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), FAULTS: str(self.faults)}

    def arm(self, name: str) -> None:
        (self.faults / name).touch()

    def struck(self, name: str) -> bool:
        return not (self.faults / name).exists()

    def loops(self) -> dict[str, dict[str, Any]]:
        """Every thread and job by name."""
        return {loop["name"]: loop for loop in self.get(VERBOSE)[1]["loops"]}

    def exceptions(self, prefix: str) -> int:
        return sum(loop["exceptions"] for name, loop in self.loops().items() if name.startswith(prefix))

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(30)


class Party:
    """A client whose worker has a KV cache of 8 blocks."""

    def __init__(self, server: Server) -> None:
        self._segment = Segment(4096)
        self._context = zmq.Context()
        self.client = Client(self._context, server.url)
        self.client.ask(register(1, [cpu_tensor([8, 2, 8, 16], shm_name=self._segment.name)]))

    def close(self) -> None:
        self.client.close()
        self._context.term()
        self._segment.remove()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokenServer]:
    with BrokenServer(tmp_path_factory.mktemp("faults")) as started:
        yield started


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BrokenServer]:
    """One that a test may end."""
    with BrokenServer(tmp_path) as started:
        yield started


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """Of the server that the test uses."""
    used = "server" if "server" in request.fixturenames else "running"
    party = Party(request.getfixturevalue(used))
    yield party.client
    party.close()


def work(client: Client) -> None:
    """A prompt that was never seen: asked for in L1 and L2, stored in both. All is answered, whatever fails."""
    first = 1000 * next(numbers)
    tokens = range(first, first + 16)
    client.ask(m.Lookup(key(tokens), packed(1)))
    assert client.ask(m.WaitPrefetchStatus("r", 10.0)) == 0
    assert client.ask(m.Store(key(tokens, worker_id=0), 1, [[1, 2]], HANDLE)) == [b"", True]
    client.ask(m.EndSession("r"))


@pytest.mark.parametrize("fault", RESTARTED)
def test_a_thread_that_meets_a_defect_goes_on_and_is_counted(running: BrokenServer, client: Client, fault: str) -> None:
    threads, before = set(running.loops()), running.exceptions(fault)
    running.arm(fault)

    def struck() -> bool:
        work(client)
        running.get("/api/healthcheck")
        return running.struck(fault) and running.exceptions(fault) == before + 1

    until(struck, "it is counted")
    until(lambda: {loop["state"] for loop in running.loops().values()} == {"running"}, "all run again")
    [kind] = {loop["problem"] for name, loop in running.loops().items() if name.startswith(fault) and loop["problem"]}
    assert kind == type(RESTARTED[fault][2]).__name__
    assert set(running.loops()) == threads
    until(lambda: running.get(LIVEZ)[0] == 200, "it is alive")
    work(client)
    assert {loop["name"] for loop in running.get("/api/status")[1]["loops"]} == threads


def test_every_thread_of_the_process_is_known(running: BrokenServer) -> None:
    """But the main one, which waits for signals, and those of libraries."""
    tasks = Path(f"/proc/{running.pid}/task")
    names = {(task / "comm").read_text().strip() for task in tasks.iterdir()}
    known = set(running.loops())
    assert {"engine", "transfer", "monitor", "advisor", "recorder", "config-watch", "waitress", "waitress-0"} < known
    assert {"l2-memory-keeper", "l2-memory-r0", "l2-memory-w0"} < known
    ours = {name for name in names if name.startswith(("l2-", "waitress", "config", "engine", "monitor"))}
    assert ours <= {name[:15] for name in known}


def test_a_transfer_thread_that_fails_is_named_and_not_begun_again(server: BrokenServer, client: Client) -> None:
    server.arm("transfer")
    assert client.ask(STORE) == [b"", False]
    told = until(lambda: (answer := server.get(LIVEZ))[0] == 503 and answer[1]["detail"], "it is named")
    assert told == "transfer: the transfer thread has ended: SystemExit(1)"
    loop = server.loops()["transfer"]
    assert (loop["state"], loop["exceptions"], loop["restarts"]) == ("failed", 1, 0)
    assert client.ask(STORE) == [b"", False]
    assert client.ask(m.Noop()) == "OK"


def test_an_engine_that_breaks_tells_its_clients_and_ends_the_process(server: BrokenServer, client: Client) -> None:
    server.arm(HOLD)
    client.ask(m.Lookup(key(range(500, 516)), packed(1)))
    waiting = client.start(m.WaitPrefetchStatus("r", 600.0))
    server.arm("engine")
    storing = client.start(STORE)
    answers = {reply[0]: unpacked(reply[2]) for reply in (client.receive(), client.receive())}
    assert answers == {waiting: 0, storing: [b"", False]}
    # The storage still holds a thread, so the end takes a while.
    status, body = server.get(LIVEZ + "?verbose")
    named = "failed: EngineStoppedError: the engine thread has ended: RuntimeError: a broken invariant"
    assert (status, body["phase"], body["detail"]) == (503, "failed", named)
    assert {loop["name"]: loop["state"] for loop in body["loops"]}["engine"] == "failed"
    (server.faults / HOLD).unlink()
    assert server.wait() == 1
    assert "the thread engine has failed" in server.output()
    assert segments_of(server.pid) == []
