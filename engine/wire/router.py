"""The ROUTER socket of the data plane. Lives on the engine thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

import zmq

from engine.events import ReplyTo
from engine.status import CutReason
from engine.wire import limits
from engine.wire.codec import BY_MESSAGE, DecodeError, Operation, decode, encode_value, find_operation
from engine.wire.connections import Connections, Traffic
from engine.wire.messages import Message, Noop

_SHORT_FRAME: Final = 255
_SHORT_HEAD: Final = 2
_LONG_HEAD: Final = 9
"""Bytes that stand before a frame on the wire, up to 255 bytes and beyond."""
_DISCARDED_FRAMES: Final = 10_000
"""Taken at once of a message of too many frames; then finished work has its turn."""
_HEARTBEAT_SECONDS: Final = 60
_HEARTBEAT_TIMEOUT_SECONDS: Final = 3600
"""How long a peer may leave heartbeats unanswered before its connection is cut, which loses the replies owed to it.

NOTE: Only a process that is stopped does that: its pings are answered by a thread of ZeroMQ, whatever the client does.
While its connection stands, nobody else is given what was lent to it. A peer whose machine or network is gone is
noticed earlier, by TCP, which has something to send because of the heartbeats. Nothing is said about how long the peer
should wait for us, so that a server that stood still for a while finds its clients as it left them.
"""
_NOBODYS_REPLY: Final = (encode_value(-1), encode_value(BY_MESSAGE[Noop].id))
"""A reply to a request that no client has made, which clients ignore: they count their requests from 0."""


class Incoming(NamedTuple):
    """One request that could be decoded."""

    to: ReplyTo
    message: Message


class Router:
    """Receives requests and sends replies. A request that cannot be decoded is answered here with its failure value."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        host: str,
        port: int,
        warn: Callable[[str], None],
        connections: Connections | None = None,
    ) -> None:
        """Binds; port 0 picks a free one. `warn` takes what an operator should read. Raises zmq.ZMQError.

        `connections` watches them from the start. Without it nobody is cut off.
        """
        self.warn = warn
        self.failed_requests = 0
        self.dropped_messages = 0
        self.dropped_replies = 0
        self._connections = connections
        self._traffic: dict[bytes, Traffic] = {}
        self._discarding = False
        """Whether the rest of a message of too many frames has to be taken still."""
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.RCVHWM, limits.RECEIVED_MESSAGES)
        self._socket.setsockopt(zmq.SNDHWM, limits.SENT_MESSAGES)
        self._socket.setsockopt(zmq.MAXMSGSIZE, limits.MAX_FRAME)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, int(_HEARTBEAT_SECONDS * 1000))
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(_HEARTBEAT_TIMEOUT_SECONDS * 1000))
        self._socket.setsockopt(zmq.IPV6, 1 if ":" in host else 0)
        if connections is not None:
            connections.attach(context, self._socket)
        try:
            self._socket.bind(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
        except zmq.ZMQError:
            self._socket.close()
            raise
        if connections is not None:
            connections.bound(int(self.endpoint.rpartition(":")[2]))

    @property
    def cut_connections(self) -> tuple[tuple[CutReason, int], ...]:
        """How many connections of clients were cut off, by reason."""
        return () if self._connections is None else tuple(self._connections.counts.items())

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """For polling only."""
        return self._socket

    @property
    def endpoint(self) -> str:
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def has_arrived(self) -> bool:
        """Whether a message waits.

        PERF: Unlike a poll or a try to receive it keeps the interpreter, which takes a while to come back where HTTP is
        asked a lot.
        """
        events = self._socket.getsockopt(zmq.EVENTS)
        assert isinstance(events, int)  # only options that are bytes are given as bytes
        return bool(events & zmq.POLLIN)

    def receive(self, limit: int) -> Iterator[Incoming]:
        """The requests that have arrived, at most `limit` messages of any kind."""
        self._begin()
        for _ in range(limit):
            if not self.has_arrived:
                if self._connections is not None:
                    self._connections.settled += 1
                return
            if self._discarding:
                self._discard()
                return
            incoming = self._read(self._take())
            if incoming is not None:
                yield incoming

    def reply(self, to: ReplyTo, value: object) -> None:
        """Sends a value; None is sent as a reply without a value frame. Never blocks, never raises for a lost peer.

        Whoever reads so little that a reply is lost loses its connection too: it would wait for that reply.
        """
        frames = [*to] if value is None else [*to, encode_value(value)]
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.dropped_replies += 1
            if error.errno == zmq.EAGAIN and self._connections is not None:
                self._connections.cut(to.client, "unread_replies")
            return
        traffic = self._traffic.get(to.client)
        if traffic is not None:
            traffic.sent += sum(len(frame) + _SHORT_HEAD for frame in frames[1:])

    def _begin(self) -> None:
        if self._connections is not None:
            for client in self._connections.forgotten():
                self._traffic.pop(client, None)

    def _take(self) -> list[bytes]:
        """The frames of the next message, its sender first; none if it has too many.

        Only those that there is memory for: a request that lacks some is refused.
        """
        client = self._socket.recv(zmq.NOBLOCK)
        frames: list[bytes] = [client]
        size = 0
        try:
            for frame in self._rest_of(client):
                frames.append(frame)
                size += _wire_bytes(len(frame))
                if len(frames) > limits.MAX_FRAMES:
                    self._begin_discarding(client)
                    frames = []
                    break
        except MemoryError:
            # NOTE: What is left of this message must not be taken for the next one.
            while self._socket.getsockopt(zmq.RCVMORE):
                size += _wire_bytes(len(self._socket.recv(zmq.NOBLOCK, copy=False)))
        if (traffic := self._traffic.get(client)) is not None:
            traffic.taken += size
        return frames

    def _rest_of(self, client: bytes) -> Iterator[bytes]:
        """The frames behind the sender's name."""
        receive, option = self._socket.recv, self._socket.getsockopt
        if client not in self._traffic and self._connections is not None:
            yield self._meet(self._connections, client)
        while option(zmq.RCVMORE):
            yield receive(zmq.NOBLOCK)

    def _meet(self, connections: Connections, client: bytes) -> bytes:
        """Takes the first frame of the first message of a client, which tells by which connection it came."""
        frame = self._socket.recv(zmq.NOBLOCK, copy=False)
        with suppress(zmq.ZMQError):  # the connection has ended
            self._traffic[client] = connections.claim(client, int(frame.get(zmq.SRCFD)))
        return frame.bytes

    def _begin_discarding(self, client: bytes) -> None:
        self._discarding = bool(self._socket.getsockopt(zmq.RCVMORE))
        self.dropped_messages += 1
        self.warn(f"message dropped: it has more than {limits.MAX_FRAMES} frames")
        if self._connections is not None:
            self._connections.cut(client, "frames")

    def _discard(self) -> None:
        """NOTE: A message cannot be left half taken. Its sender is cut off; what it sent already is worth nothing."""
        receive, option = self._socket.recv, self._socket.getsockopt
        for _ in range(_DISCARDED_FRAMES):
            receive(zmq.NOBLOCK)
            if not option(zmq.RCVMORE):
                self._discarding = False
                return

    def reaches(self, client: bytes) -> bool:
        """Whether the connection of a client stands. Never blocks."""
        try:
            self._socket.send_multipart([client, *_NOBODYS_REPLY], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            # NOTE: A client that reads nothing is still there.
            return error.errno == zmq.EAGAIN
        return True

    def close(self, linger: float = 0.0) -> None:
        """Gives replies that were not sent yet at most `linger` seconds."""
        self._socket.close(linger=int(linger * 1000))

    def _read(self, frames: list[bytes]) -> Incoming | None:
        if not frames:
            return None
        if len(frames) < 3 or not frames[2]:
            # NOTE: An empty op frame is a word about an event stream; unknown streams are ignored silently.
            self.dropped_messages += len(frames) < 3
            return None
        to, operation = ReplyTo(*frames[:3]), find_operation(frames[2])
        if operation is None or not operation.answers:
            self._drop(frames[2], operation)
            return None
        try:
            return Incoming(to, decode(operation, frames[3:]))
        except DecodeError as error:
            self.fail(to, operation, str(error))
        except MemoryError:
            self.fail(to, operation, f"there is no memory for {sum(map(len, frames))} bytes of {operation.name}")
        return None

    def fail(self, to: ReplyTo, operation: Operation, reason: str) -> None:
        """Answers the operation's failure value."""
        self.warn(f"request refused: {reason}")
        self.failed_requests += 1
        self.reply(to, operation.failure)

    def _drop(self, op: bytes, operation: Operation | None) -> None:
        name = operation.name if operation else f"the unknown operation {op[:32].hex()}"
        self.warn(f"message dropped: {name} is not served")
        self.dropped_messages += 1


def _wire_bytes(size: int) -> int:
    """Bytes on the wire of a frame of so many."""
    return size + (_SHORT_HEAD if size <= _SHORT_FRAME else _LONG_HEAD)
