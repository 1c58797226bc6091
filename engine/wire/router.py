"""The ROUTER socket of the data plane. Lives on the engine thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import zmq

from engine.events import ReplyTo
from engine.wire.codec import BY_MESSAGE, DecodeError, Operation, decode, encode_value, find_operation
from engine.wire.messages import Message, Noop

_HIGH_WATER_MARK: Final = 10_000
"""Messages per peer and direction: a peer that never reads cannot grow memory without bound."""
_MAX_FRAME_BYTES: Final = 64 << 20
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
        self, context: zmq.Context[zmq.Socket[bytes]], host: str, port: int, warn: Callable[[str], None]
    ) -> None:
        """Binds; port 0 picks a free one. `warn` takes what an operator should read. Raises zmq.ZMQError."""
        self.warn = warn
        self.failed_requests = 0
        self.dropped_messages = 0
        self.dropped_replies = 0
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, int(_HEARTBEAT_SECONDS * 1000))
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(_HEARTBEAT_TIMEOUT_SECONDS * 1000))
        self._socket.setsockopt(zmq.IPV6, 1 if ":" in host else 0)
        try:
            self._socket.bind(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
        except zmq.ZMQError:
            self._socket.close()
            raise

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
        for _ in range(limit):
            if not self.has_arrived:
                return
            incoming = self._read(self._take())
            if incoming is not None:
                yield incoming

    def reply(self, to: ReplyTo, value: object) -> None:
        """Sends a value; None is sent as a reply without a value frame. Never blocks, never raises for a lost peer."""
        frames = [*to] if value is None else [*to, encode_value(value)]
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.dropped_replies += 1

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

    def _take(self) -> list[bytes]:
        """The frames of the next message, as far as there is memory for them: one that lacks some is refused."""
        frames = [self._socket.recv(zmq.NOBLOCK)]
        try:
            while self._socket.getsockopt(zmq.RCVMORE):
                frames.append(self._socket.recv(zmq.NOBLOCK))
        except MemoryError:
            # NOTE: What is left of this message must not be taken for the next one.
            while self._socket.getsockopt(zmq.RCVMORE):
                self._socket.recv(zmq.NOBLOCK, copy=False)
        return frames

    def _read(self, frames: list[bytes]) -> Incoming | None:
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
