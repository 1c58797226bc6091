"""The ROUTER socket: what is served, refused, ignored and dropped, and that it never blocks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
import zmq

from engine.events import ReplyTo
from engine.wire import messages as m
from engine.wire.codec import OPERATIONS, Operation
from engine.wire.router import Incoming, Router
from tests.support.polling import until
from tests.unit.engine.support import Client, packed, unpacked

WAIT = 20_000

# What a client sends first: it speaks ZMTP 3.1 without security, is a DEALER, and asks for nothing.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x29\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
NOOP = b"\x01\x01\x01" + b"\x00\x01\x18"


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def router(context: zmq.Context[zmq.Socket[bytes]], warnings: list[str]) -> Iterator[Router]:
    made = Router(context, "127.0.0.1", 0, warnings.append)
    yield made
    made.close()


@pytest.fixture
def client(context: zmq.Context[zmq.Socket[bytes]], router: Router) -> Iterator[Client]:
    made = Client(context, router.endpoint)
    yield made
    made.close()


def receive(router: Router) -> list[Incoming]:
    """What has come, once something has."""
    assert router.socket.poll(WAIT)
    return list(router.receive(100))


def receive_until(router: Router, last: bytes) -> list[Incoming]:
    """All messages up to the one with this uid."""
    found: list[Incoming] = []
    while not found or found[-1].to.uid != last:
        found += receive(router)
    return found


def test_a_request_is_read_with_what_its_reply_needs(router: Router, client: Client) -> None:
    client.send(b"\xcd\x00\x05", b"\xcc\x16", packed(7))
    [incoming] = receive(router)
    assert incoming.message == m.Ping(7)
    assert incoming.to[1:] == (b"\xcd\x00\x05", b"\xcc\x16")


@pytest.mark.parametrize(("value", "frames"), [(None, []), (16, [b"\x10"]), (False, [b"\xc2"]), ("OK", [b"\xa2OK"])])
def test_a_reply_echoes_uid_and_op_and_has_a_value_unless_that_is_none(
    router: Router, client: Client, value: object, frames: list[bytes]
) -> None:
    client.send(b"any bytes", b"\xcc\x18")
    [incoming] = receive(router)
    router.reply(incoming.to, value)
    assert client.receive() == [b"any bytes", b"\xcc\x18", *frames]


@pytest.mark.parametrize("op", [op for op in OPERATIONS if op.arguments], ids=lambda op: op.name)
def test_a_payload_that_cannot_be_read_is_answered_with_the_failure_value(
    router: Router, client: Client, op: Operation
) -> None:
    client.send(b"1", packed(op.name))
    assert receive(router) == []
    uid, name, *value = client.receive()
    assert (uid, name) == (b"1", packed(op.name))
    assert (unpacked(value[0]) if value else None) == unpacked(packed(op.failure))
    assert (router.failed_requests, router.dropped_messages) == (1, 0)


def test_a_request_for_which_there_is_no_memory_is_answered_with_the_failure_value(
    router: Router, client: Client, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("engine.wire.router.decode", fails)
    client.send(b"1", packed("query_prefetch_status"), packed("r"))
    assert receive(router) == []
    assert client.receive() == [b"1", packed("query_prefetch_status"), packed(0)]
    assert warnings == ["request refused: there is no memory for 30 bytes of query_prefetch_status"]


def test_a_frame_for_which_there_is_no_memory_costs_its_message_and_not_the_next(
    router: Router, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    recv = zmq.Socket.recv

    def scarce(socket: zmq.Socket[bytes], flags: int = 0, copy: bool = True) -> object:
        found = recv(socket, flags, copy=copy)
        if found == packed("large"):
            raise MemoryError
        return found

    monkeypatch.setattr(zmq.Socket, "recv", scarce)
    client.send(b"1", packed("wait_prefetch_status"), packed("large"), packed(1.0))
    client.send(b"2", packed("noop"))
    [incoming] = receive_until(router, b"2")
    monkeypatch.undo()
    router.reply(incoming.to, "OK")
    assert [client.receive()[0] for _ in range(2)] == [b"1", b"2"]
    assert router.failed_requests == 1


def test_a_refusal_says_which_argument_is_wrong(router: Router, client: Client, warnings: list[str]) -> None:
    client.send(b"1", packed("query_prefetch_status"), packed(5))
    receive(router)
    assert warnings == ["request refused: argument 0 of query_prefetch_status: Expected `str`, got `int`"]


@pytest.mark.parametrize("name", ["store_q", "cb_retrieve_pre_computed", "register_q_cache", "unregister_q_cache"])
def test_an_operation_that_is_known_and_not_served_fails(router: Router, client: Client, name: str) -> None:
    client.send(b"1", packed(name), b"whatever")
    assert receive(router) == []
    assert client.receive()[:2] == [b"1", packed(name)]


@pytest.mark.parametrize("op", [packed(11), packed(250), packed("no_such_op"), b"\xc1", packed("cb_unified_lookup")])
def test_what_nobody_could_answer_is_dropped_and_counted(
    router: Router, client: Client, warnings: list[str], op: bytes
) -> None:
    client.send(b"1", op, b"payload")
    client.send(b"2", packed("noop"))
    [incoming] = receive_until(router, b"2")
    router.reply(incoming.to, None)
    assert client.receive()[0] == b"2"
    assert (router.failed_requests, router.dropped_messages) == (0, 1)
    assert len(warnings) == 1


@pytest.mark.parametrize("frames", [[b"1"], [b""]])
def test_a_message_without_an_operation_is_dropped_and_counted(
    router: Router, client: Client, frames: list[bytes]
) -> None:
    client.send(*frames)
    client.send(b"2", packed("noop"))
    assert [incoming.to.uid for incoming in receive_until(router, b"2")] == [b"2"]
    assert router.dropped_messages == 1


@pytest.mark.parametrize("word", [b"ack", b"cancel", b"anything"])
def test_a_word_about_a_stream_is_ignored(router: Router, client: Client, warnings: list[str], word: bytes) -> None:
    client.send(b"1", b"", word)
    client.send(b"2", packed("noop"))
    assert [incoming.to.uid for incoming in receive_until(router, b"2")] == [b"2"]
    assert (router.failed_requests, router.dropped_messages, warnings) == (0, 0, [])


def test_no_more_is_taken_at_once_than_asked_for(router: Router, client: Client) -> None:
    for number in range(5):
        client.send(packed(number), packed("noop"))
    client.send(b"bad", b"\xc1")
    assert router.socket.poll(WAIT)
    taken: list[int] = []
    while sum(taken) < 5:
        assert router.socket.poll(WAIT)
        taken.append(len(list(router.receive(2))))
    assert max(taken) <= 2


def test_a_vanished_client_costs_a_reply_and_nothing_else(router: Router) -> None:
    router.reply(ReplyTo(b"nobody", b"1", b"\x18"), "OK")
    assert router.dropped_replies == 1


def test_a_client_that_does_not_read_costs_its_replies_and_blocks_nobody(
    context: zmq.Context[zmq.Socket[bytes]], router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise zmq.Again

    monkeypatch.setattr(zmq.Socket, "send_multipart", full)
    router.reply(ReplyTo(b"slow", b"1", b"\x18"), "OK")
    assert router.dropped_replies == 1


def test_sockets_are_bounded_and_say_when_a_peer_is_gone(router: Router) -> None:
    options = {zmq.RCVHWM: 16, zmq.SNDHWM: 10_000, zmq.MAXMSGSIZE: 32 << 20}
    assert {option: router.socket.getsockopt(option) for option in options} == options


def test_a_client_is_reached_while_its_connection_stands(router: Router, client: Client) -> None:
    client.send(b"1", packed("noop"))
    [incoming] = receive(router)
    assert router.reaches(incoming.to.client)
    client.close()
    until(lambda: not router.reaches(incoming.to.client), "the connection is gone")
    assert router.dropped_replies == 0


def test_what_reaches_a_client_is_a_reply_to_a_request_it_cannot_have_made(router: Router, client: Client) -> None:
    client.send(b"1", packed("noop"))
    [incoming] = receive(router)
    router.reaches(incoming.to.client)
    uid, op = client._socket.recv_multipart()
    assert (unpacked(uid), unpacked(op)) == (-1, 24)


def test_a_client_that_does_not_read_is_reached(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise zmq.Again

    monkeypatch.setattr(zmq.Socket, "send_multipart", full)
    assert router.reaches(b"slow")


def test_a_connection_that_carries_nothing_any_more_is_noticed_by_heartbeats(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer says what a client says first, and then nothing, as behind a network that drops all it is given."""
    monkeypatch.setattr("engine.wire.router._HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr("engine.wire.router._HEARTBEAT_TIMEOUT_SECONDS", 0.1)
    with closing(Router(context, "127.0.0.1", 0, lambda text: None)) as router:
        port = int(router.endpoint.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(GREETING + READY)
            greeted = b""
            while b"ROUTER" not in greeted:
                greeted += peer.recv(1000)
            peer.sendall(NOOP)
            [incoming] = receive(router)
            assert router.reaches(incoming.to.client)
            until(lambda: not router.reaches(incoming.to.client), "the connection is cut")


def test_no_connection_is_cut_within_five_minutes(router: Router) -> None:
    """It would lose the replies owed to a client that stood still, which waits for them for ever."""
    assert router.socket.getsockopt(zmq.HEARTBEAT_IVL) > 0
    assert router.socket.getsockopt(zmq.HEARTBEAT_TIMEOUT) >= 300_000
    assert router.socket.getsockopt(zmq.HEARTBEAT_TTL) == 0


def test_a_port_that_is_taken_is_refused(context: zmq.Context[zmq.Socket[bytes]], router: Router) -> None:
    port = int(router.endpoint.rpartition(":")[2])
    with pytest.raises(zmq.ZMQError):
        Router(context, "127.0.0.1", port, lambda text: None)


def test_it_listens_on_ipv6_too(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    made = Router(context, "::1", 0, lambda text: None)
    assert made.endpoint.startswith("tcp://[::1]:")
    made.close()


def test_requests_of_several_clients_are_told_apart(
    context: zmq.Context[zmq.Socket[bytes]], router: Router, client: Client
) -> None:
    other = Client(context, router.endpoint)
    client.send(b"1", packed("noop"))
    other.send(b"1", packed("noop"))
    incoming: list[Incoming] = []
    while len(incoming) < 2:
        incoming += receive(router)
    assert len({one.to.client for one in incoming}) == 2
    for number, one in enumerate(incoming):
        router.reply(one.to, number)
    assert {client.receive()[2], other.receive()[2]} == {b"\x00", b"\x01"}
    other.close()
