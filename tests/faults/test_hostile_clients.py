"""Clients that send anything, too much, without an end, or read nothing: a server of its own, and one that behaves.

Whatever the hostile ones do, the other client is answered within half a heartbeat, and memory stays bounded.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import zmq

from engine.wire import codec, limits
from engine.wire import messages as m
from tests.support.polling import until
from tests.support.raw_peer import GREETING, RawPeer, connect, frame, message
from tests.support.server import Server
from tests.unit.engine.support import (
    HANDLE,
    Client,
    Segment,
    cpu_tensor,
    group,
    key,
    packed,
    register,
    register_engine_driven,
)

HALF_HEARTBEAT = 5.0
"""A client whose ping is not answered for a heartbeat, 10 s, gives its transfers up."""
MEMORY = 1 << 30
"""Beyond what the server takes without clients: half a second of frames without content, at 64 bytes each."""
NOOP = packed(24)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--chunk-size", "256", l1_size_gb=0.0625) as made:
        yield made


class Behaved(threading.Thread):
    """Pings without a pause, and notes how long it waited at most."""

    def __init__(self, server: Server) -> None:
        super().__init__(name="behaved")
        self.longest = 0.0
        self.answers = 0
        self._ended = threading.Event()
        self._context = zmq.Context()
        self._client = Client(self._context, server.url)

    def run(self) -> None:
        while not self._ended.wait(0.01):
            before = time.monotonic()
            assert self._client.ask(m.Ping(None)) in (True, False)
            self.longest = max(self.longest, time.monotonic() - before)
            self.answers += 1

    def stop(self) -> None:
        self._ended.set()
        self.join()
        self._client.close()
        self._context.term()


def private_bytes(pid: int) -> int:
    """Resident memory without what is shared, which is L1."""
    _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGESIZE")


@pytest.fixture(autouse=True)
def behaved(server: Server) -> Iterator[Behaved]:
    """One that is never to notice anything."""
    made = Behaved(server)
    made.start()
    until(lambda: made.answers > 10, "it is served")
    made.longest, before = 0.0, private_bytes(server.pid)
    yield made
    answers = made.answers
    until(lambda: made.answers > answers + 10, "it is served still")
    made.stop()
    assert made.longest < HALF_HEARTBEAT
    assert private_bytes(server.pid) - before < MEMORY
    assert server.get("/api/healthcheck")[0] == 200


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with zmq.Context() as context:
        made = Client(context, server.url)
        yield made
        made.close()


def cut(server: Server) -> int:
    return sum(server.get("/api/status")[1]["cut_connections"].values())


def send_until_cut(server: Server, part: bytes) -> None:
    before = cut(server)
    with RawPeer(server.port) as peer:
        until(lambda: not peer.send(part), "it is cut off")
    until(lambda: cut(server) == before + 1, "it is counted")


def test_an_endless_message_of_large_frames(server: Server) -> None:
    send_until_cut(server, frame(bytes(1 << 20), more=True))


def test_an_endless_message_of_frames_without_content(server: Server) -> None:
    send_until_cut(server, frame(b"", more=True) * 10_000)


def test_a_message_of_very_many_frames(server: Server) -> None:
    send_until_cut(server, message(*[b""] * 50_000))


def test_requests_whose_answers_nobody_reads(server: Server) -> None:
    before = cut(server)
    with RawPeer(server.port, receive_buffer=4096) as peer:
        requests = message(b"u" * 30, packed("noop")) * 200
        until(lambda: not peer.send(requests), "it is cut off", 60)
    until(lambda: cut(server) == before + 1, "it is counted")


def test_frames_larger_than_any_message(server: Server) -> None:
    """libzmq ends such a connection by itself, at the frame's head."""
    with RawPeer(server.port) as peer:
        peer.send(frame(bytes(limits.MAX_FRAME + 1)))
        assert peer.is_cut()


@pytest.mark.parametrize(
    "greeting",
    [b"", b"\xff", GREETING[:40], GREETING + b"\x04", b"GET / HTTP/1.1\r\n\r\n", bytes(100), os.urandom(1 << 20)],
    ids=["nothing", "a byte", "half a greeting", "half a command", "HTTP", "zeros", "anything"],
)
def test_connections_that_never_become_clients(server: Server, greeting: bytes) -> None:
    peers = []
    for _ in range(150):
        peer = connect(server.port)
        peer.setblocking(False)
        with suppress(ConnectionResetError, BrokenPipeError):
            peer.send(greeting)
        peers.append(peer)
    for peer in peers:
        peer.close()


def test_half_frames_of_clients_that_vanish(server: Server) -> None:
    whole = message(b"1", NOOP, bytes(1000))
    for end in range(1, len(whole), 7):
        with RawPeer(server.port) as peer:
            peer.send(whole[:end])
            peer.socket.shutdown(socket.SHUT_WR)


def encoded(request: m.Message) -> list[bytes]:
    operation = codec.BY_MESSAGE[type(request)]
    return [packed(1), packed(operation.name), *codec.encode(request)]


def tokens(seed: int, length: int, first: int, last: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(first, last, length).tolist()
    return found


def lookups() -> list[list[bytes]]:
    """Of prompts as long as can be, each token in five bytes, that were never seen."""
    longest = limits.MAX_TOKENS
    return [
        encoded(m.Lookup(key(tokens(seed, longest, 1 << 20, 1 << 30), end=longest, request_id=str(seed)), b"\x01"))
        for seed in range(2)
    ]


def preparations() -> list[list[bytes]]:
    """Slots for prompts as long as can be, each token in one byte: nothing costs the engine thread more."""
    longest = limits.MAX_TOKENS
    return [
        encoded(m.PrepareStore(key(tokens(seed, longest, 0, 128), end=longest, worker_id=0, model_name="f"), 77))
        for seed in range(2)
    ]


def registrations() -> list[list[bytes]]:
    """As many tensors as can be, of memory that is not there."""
    bodies = [cpu_tensor([64, 2, 8, 8], shm_name="/kvkeep_test_nobody", nbytes=1 << 40)] * 512
    return [encoded(register(number, bodies, groups=[group(range(512))], model_name="f")) for number in range(3)]


def block_lists() -> list[list[bytes]]:
    """As many block ids as can be, for one chunk."""
    ids = [[1] * (limits.BLOCK_IDS - 100)]
    return [encoded(m.Store(key(range(256), worker_id=0, model_name="f"), 77, ids, HANDLE))]


@pytest.mark.parametrize("expensive", [lookups, preparations, registrations, block_lists])
def test_a_flood_of_the_most_expensive_requests(server: Server, client: Client, expensive: object) -> None:
    client.ask(register_engine_driven(77, model_name="f", num_physical_slots=256))
    requests = expensive()  # type: ignore[operator]
    with zmq.Context() as context:
        flooders = []
        for _ in range(2):
            flooders.append(context.socket(zmq.DEALER))
            flooders[-1].setsockopt(zmq.LINGER, 0)
            flooders[-1].setsockopt(zmq.SNDHWM, 2)
            flooders[-1].connect(server.url)
        numbers, until_then = count(), time.monotonic() + 3.0
        while time.monotonic() < until_then:
            for flooder in flooders:
                if flooder.poll(2, zmq.POLLOUT):
                    flooder.send_multipart(requests[next(numbers) % len(requests)], copy=False)
                while flooder.poll(0):
                    flooder.recv_multipart()
        for flooder in flooders:
            flooder.close()
    client.ask(m.UnregisterEngineDriven(77))
    assert len(server.output()) < 1 << 20


def test_a_flood_does_not_fill_the_log(server: Server, client: Client) -> None:
    before = len(server.output())
    for number in range(500):
        client.send(packed(number), packed("lookup"), bytes(300), b"")
        client.receive()
    assert len(server.output()) - before < 64 << 10


@pytest.mark.parametrize("when", ["registered", "gone"])
def test_a_worker_that_cuts_its_memory_short(server: Server, client: Client, when: str) -> None:
    segment = Segment(8 * 4096)
    request = register(5, [cpu_tensor([8, 2, 8, 128], shm_name=segment.name)], model_name="cut")
    store = m.Store(key(range(256), worker_id=0, model_name="cut"), 5, [[1 + n % 7 for n in range(32)]], HANDLE)
    try:
        client.ask(request)
        assert client.ask(store) == [b"", True]
        client.ask(m.Clear(False))
        os.truncate(segment.path, 4096 if when == "registered" else 0)
        assert client.ask(store) == [b"", False]
        [worker] = [each for each in server.get("/api/workers")[1]["workers"] if each["instance_id"] == 5]
        assert worker["state"] == "broken"
        assert "has been cut short" in worker["problem"]
        os.truncate(segment.path, 8 * 4096)
        client.ask(request)
        assert client.ask(store) == [b"", True]
    finally:
        client.ask(m.UnregisterKVCache(5))
        segment.remove()


def test_a_worker_that_registers_the_servers_own_pool(server: Server, client: Client) -> None:
    pool = client.ask(register_engine_driven(6, model_name="pool"))["shm_name"]
    client.ask(register(7, [cpu_tensor([8, 2, 8, 128], shm_name=f"/{pool}")], model_name="pool"))
    [worker] = [each for each in server.get("/api/workers")[1]["workers"] if each["instance_id"] == 7]
    assert (worker["state"], "is the pool of a server" in worker["problem"]) == ("broken", True)
    client.ask(m.UnregisterEngineDriven(6))
    client.ask(m.UnregisterKVCache(7))
