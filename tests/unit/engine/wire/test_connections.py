"""Who is cut off, and why; and who is not. With a real socket, whose messages are taken as the engine thread does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import zmq

from engine.background import Background
from engine.wire import limits
from engine.wire.connections import Connections
from engine.wire.router import Incoming, Router
from tests.support.polling import until
from tests.support.raw_peer import HANDSHAKE_BYTES, RawPeer, connect, frame, message
from tests.unit.engine.support import Client, packed

NOOP = packed(24)
TRICKLE = 64 * 1024


class Served:
    """A router, its watch, and a thread that takes and answers whatever comes."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.warnings: list[str] = []
        self.connections = Connections(self.warnings.append, time.monotonic)
        self.router = Router(context, "127.0.0.1", 0, self.warnings.append, self.connections)
        self.port = int(self.router.endpoint.rpartition(":")[2])
        self.taken: list[Incoming] = []
        self.answer: object = "OK"
        self.taking = True
        self._stop = threading.Event()
        self._watch = Background("connections", self.connections.work, self.connections.close)
        self._thread = threading.Thread(target=self._run, name="taker")
        self._watch.start()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self.router.close()
        assert self._watch.stop()

    def cut(self) -> dict[str, int]:
        return {reason: count for reason, count in self.connections.counts.items() if count}

    def _run(self) -> None:
        while not self._stop.is_set():
            if self.taking:
                self.router.socket.poll(10)
                for incoming in self.router.receive(64):
                    self.taken.append(incoming)
                    self.router.reply(incoming.to, self.answer)
            else:
                self._stop.wait(0.01)


@pytest.fixture
def served() -> Iterator[Served]:
    with zmq.Context() as context:
        made = Served(context)
        yield made
        made.stop()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    """One that behaves; whatever the others do, it is answered."""
    with zmq.Context() as context:
        made = Client(context, served.router.endpoint)
        yield made
        made.send(b"1", NOOP)
        assert made.receive() == [b"1", NOOP, *([packed(served.answer)] if served.answer else [])]
        made.close()


@pytest.mark.usefixtures("client")
def test_who_is_ahead_waits_and_what_it_sends_stays_with_it(served: Served) -> None:
    served.taking = False
    with RawPeer(served.port) as peer:
        peer.socket.settimeout(0.5)
        sent = 0
        with suppress(TimeoutError):
            while sent < 200 and peer.send(message(b"1", NOOP, bytes(limits.MIB))):
                sent += 1
        assert limits.RECEIVED_MESSAGES <= sent < 64
        assert served.cut() == {}
    served.taking = True


@pytest.mark.usefixtures("client")
def test_more_than_may_wait_of_a_client_is_not_kept(served: Served) -> None:
    served.taking = False
    with RawPeer(served.port) as peer:
        one = message(b"1", NOOP, bytes(limits.MAX_FRAME - limits.KIB))
        sent = 0
        while sent < limits.RECEIVED_MESSAGES and peer.send(one):
            sent += 1
        assert sent >= limits.MAX_QUEUE // limits.MAX_FRAME - 1
        until(lambda: served.cut() == {"queue": 1}, "it is cut off")
    served.taking = True
    assert "was cut off: more than 201326592 bytes of it wait" in served.warnings[0]


@pytest.mark.usefixtures("client")
def test_what_has_been_taken_does_not_count(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short and long frames, whole messages of them, far more than may wait in sum."""
    monkeypatch.setattr(limits, "MAX_QUEUE", 400_000)
    monkeypatch.setattr(limits, "FORGIVEN_PER_SECOND", 0)
    with RawPeer(served.port) as peer:
        for number in range(200):
            assert peer.send(message(b"1", NOOP, bytes(255), bytes(256), bytes(number)) * 30)
            until(lambda wanted=30 * (number + 1): len(served.taken) == wanted, "all are taken")
        [connection] = served.connections._by_client.values()
        _, received = connection.look()
        assert received - connection.traffic.taken == HANDSHAKE_BYTES
    assert served.cut() == {}


@pytest.mark.usefixtures("client")
def test_a_message_without_an_end_is_cut_off_while_nothing_else_waits(served: Served) -> None:
    with RawPeer(served.port) as peer:
        part = frame(bytes(limits.MIB), more=True)
        sent = 0
        while sent < 64 and peer.send(part):
            sent += 1
        until(served.cut, "it is cut off")
        assert set(served.cut()) <= {"open_message", "queue"}


@pytest.mark.usefixtures("client")
def test_a_message_that_grows_slowly_in_small_frames_is_cut_off(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_OPEN_SLOWLY", TRICKLE)
    with RawPeer(served.port) as peer:
        until(lambda: not peer.send(frame(b"", more=True) * 1000) or served.cut(), "it is cut off")
        assert served.cut() == {"open_message": 1}


@pytest.mark.usefixtures("client")
def test_a_message_that_stops_half_way_costs_nothing_and_may_go_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_OPEN_SLOWLY", TRICKLE)
    whole = message(b"1", NOOP, bytes(4 * TRICKLE))
    with RawPeer(served.port) as peer:
        peer.send(whole[: 2 * TRICKLE])
        looks = served.connections._next_round
        until(lambda: served.connections._next_round > looks + 1.0, "ten looks have passed")
        peer.send(whole[2 * TRICKLE :])
        until(lambda: len(served.taken) == 1, "it is taken")
    assert served.cut() == {}


@pytest.mark.usefixtures("client")
def test_a_message_of_too_many_frames_is_dropped_and_its_sender_cut_off(served: Served) -> None:
    with RawPeer(served.port) as peer:
        peer.send(message(*[b"1"] * 30_000))
        assert peer.is_cut()
    assert (served.taken, served.router.dropped_messages, served.cut()) == ([], 1, {"frames": 1})


@pytest.mark.usefixtures("client")
def test_as_many_frames_as_are_possible_are_taken(served: Served) -> None:
    with RawPeer(served.port) as peer:
        peer.send(message(b"1", NOOP, *[b""] * (limits.MAX_FRAMES - 3)))
        until(lambda: len(served.taken) == 1, "it is taken")
    assert served.cut() == {}


def test_whoever_reads_nothing_is_cut_off(served: Served, client: Client) -> None:
    served.answer = "x" * 100_000
    with RawPeer(served.port, receive_buffer=4096) as peer:
        until(lambda: not peer.send(message(b"1", NOOP)) or served.cut(), "it is cut off")
        assert served.cut() == {"unread_replies": 1}
    served.answer = "OK"


def test_whoever_reads_late_is_served(served: Served, client: Client) -> None:
    """Far more than may be unread goes through one connection."""
    for _ in range(100):
        served.answer = "x" * 1_000_000
        client.send(b"1", NOOP)
        assert len(client.receive()[2]) > 1_000_000
    served.answer = "OK"
    assert served.cut() == {}


def test_too_many_connections_cost_those_that_never_sent_anything(served: Served, client: Client) -> None:
    client.send(b"1", NOOP)
    client.receive()
    served.connections._most = 10
    silent = [connect(served.port) for _ in range(30)]
    until(lambda: served.cut() == {"connections": 21}, "all but nine are cut off")
    assert len(silent[0].recv(64)) in (0, 10, 64)
    for each in silent:
        each.close()
    until(lambda: len(served.connections._by_descriptor) == 1, "all have ended but the client's")


def test_what_is_known_of_a_client_goes_with_its_connection(served: Served, client: Client) -> None:
    for _ in range(20):
        with RawPeer(served.port) as peer:
            peer.send(message(b"1", NOOP))
            assert peer.socket.recv(1)
    until(lambda: len(served.connections._by_descriptor) == 1, "all have ended but the client's")
    client.send(b"1", NOOP)
    client.receive()
    until(lambda: len(served.connections._by_client) == 1, "the client is known")
    client.send(b"1", NOOP)
    client.receive()
    assert len(served.router._traffic) == 1


@pytest.mark.usefixtures("client")
def test_a_descriptor_that_is_another_files_is_left_alone(served: Served) -> None:
    with connect(served.port) as other, open("/dev/null") as file:  # noqa: PTH123
        assert served.connections._duplicate(file.fileno()) is None
        assert served.connections._duplicate(9999) is None
        assert served.connections._duplicate(other.fileno()) is None
