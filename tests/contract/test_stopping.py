"""The orderly end of a real process, with a transfer that runs while it is told to stop; and what systemd is told."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from engine.wire import messages as m
from tests.contract.gated import GATE
from tests.support.polling import until
from tests.support.server import Server
from tests.support.shm import segments_of
from tests.unit.engine.support import HANDLE, Client, Segment, cpu_tensor, key, packed, register, unpacked

LIVEZ, READYZ, HEALTHCHECK = "/api/livez", "/api/readyz", "/api/healthcheck"


class GatedServer(Server):
    """kvkeep whose copies wait for a file."""

    def __init__(self, gate: Path, *flags: str) -> None:
        super().__init__("--chunk-size", "16", *flags, l1_size_gb=0.0625)
        self.gate = gate

    def command(self) -> list[str]:
        arguments = super().command()
        assert arguments[:3] == [sys.executable, "-m", "service"]
        return [sys.executable, "-m", "tests.contract.gated", *arguments[3:]]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), GATE: str(self.gate)}

    def told(self) -> dict[str, Any]:
        """What readyz says, in full."""
        _, body = self.get(READYZ + "?verbose")
        return dict(body)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GatedServer]:
    with GatedServer(tmp_path / "gate") as running:
        yield running


@pytest.fixture
def client(server: GatedServer) -> Iterator[Client]:
    """A client whose worker has a KV cache of 8 blocks."""
    segment = Segment(4096)
    with zmq.Context() as context:
        made = Client(context, server.url)
        made.ask(register(1, [cpu_tensor([8, 2, 8, 16], shm_name=segment.name)]))
        yield made
        made.close()
    segment.remove()


def start_to_store(server: GatedServer, client: Client, chunk: int) -> bytes:
    """Begins a store and returns once it runs."""
    uid = client.start(m.Store(key(range(100 * chunk, 100 * chunk + 16), worker_id=0), 1, [[1, 2]], HANDLE))
    until(lambda: server.get("/api/status")[1]["running_transfers"] == 1, "the store runs")
    return uid


def test_what_runs_may_run_out_and_nothing_begins(server: GatedServer, client: Client) -> None:
    running = start_to_store(server, client, 1)
    server.signal(signal.SIGTERM)
    until(lambda: server.get(READYZ)[0] == 503, "not ready", 1.0)
    assert server.get(READYZ)[1]["detail"] == "stopping: the server is stopping"
    assert server.get(LIVEZ) == (200, {"status": "ok"})
    assert server.get(HEALTHCHECK) == (503, {"status": "unhealthy", "reason": "the server is stopping"})
    assert server.post("/api/clear-cache") == (503, {"status": "error", "reason": "the server is stopping"})
    assert server.told()["phase"] == "stopping"
    begun = m.Store(key(range(500, 516), worker_id=0), 1, [[3, 4]], HANDLE)
    assert until(lambda: client.ask(begun), "the skipped store is answered") == [b"", True]
    client.ask(m.Lookup(key(range(100, 116)), packed(1)))
    assert client.ask(m.QueryPrefetchStatus("r")) == 0
    server.gate.touch()
    assert (reply := client.receive())[0] == running
    assert unpacked(reply[2]) == [b"", True]
    assert server.wait() == 0
    assert "drained, 0 transfers still run" in server.output()
    assert segments_of(server.pid) == []


def test_a_second_signal_ends_the_wait_and_a_copy_that_never_ends_does_not_keep_the_process(
    server: GatedServer, client: Client
) -> None:
    start_to_store(server, client, 1)
    server.signal(signal.SIGTERM)
    until(lambda: server.get(READYZ)[0] == 503, "not ready", 1.0)
    began = time.monotonic()
    server.signal(signal.SIGINT)
    assert server.wait() == 1
    assert time.monotonic() - began < 10
    output = server.output()
    assert "drained, 1 transfers still run" in output
    assert "threads that do not end: transfer; the process ends without them" in output
    assert not client._socket.poll(100), "a client was told that its copy had ended"
    assert segments_of(server.pid) == []


def test_the_wait_has_an_end(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("server: {drain_timeout: 0.2}\n")
    segment = Segment(4096)
    with GatedServer(tmp_path / "gate", "--config", str(file)) as server, zmq.Context() as context:
        client = Client(context, server.url)
        client.ask(register(1, [cpu_tensor([8, 2, 8, 16], shm_name=segment.name)]))
        start_to_store(server, client, 1)
        server.signal(signal.SIGTERM)
        until(lambda: "drained, 1 transfers still run" in server.output(), "the wait is over", 3.0)
        server.gate.touch()
        assert server.wait() == 0
        client.close()
    segment.remove()


class NotifiedServer(Server):
    """kvkeep as systemd starts it, with a watchdog of a second."""

    def __init__(self, address: str, *flags: str) -> None:
        super().__init__(*flags, l1_size_gb=0.0625)
        self.address = address

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": "1000000"}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.settimeout(20)
        made.bind(str(tmp_path / "notify"))
        yield made


def test_systemd_is_told_of_the_whole_life(manager: socket.socket) -> None:
    with NotifiedServer(manager.getsockname()) as server:
        told = manager.recv(4096).decode().splitlines()
        assert told == ["READY=1", f"STATUS=serving tcp://127.0.0.1:{server.port} {server.http_url}"]
        assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        assert server.stop() == 0
        rest = [manager.recv(4096)]
        while rest[-1] == b"WATCHDOG=1":
            rest.append(manager.recv(4096))
        assert rest[-1] == b"STOPPING=1\nSTATUS=stopping"


class SpawnedServer(NotifiedServer):
    """The same, to be watched while it starts."""

    def __enter__(self) -> SpawnedServer:
        return self.spawn()


def test_systemd_is_told_of_a_start_that_has_failed(manager: socket.socket) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        unable = SpawnedServer(manager.getsockname())
        unable.port = taken.getsockname()[1]
        with unable as server:
            told = manager.recv(4096).decode()
            assert told.startswith(f"STATUS=failed: StartError: cannot listen on 127.0.0.1:{unable.port}")
            assert "\n" not in told
            assert server.stop() == 1
            assert manager.recv(4096).startswith(b"STOPPING=1\n")
