"""Watches the data plane's TCP connections: how many bytes of each wait, and cuts off whoever has too many.

libzmq bounds what it queues for a peer in whole messages only: neither their size, nor a message that never ends, nor
how much that is together. The kernel knows how many bytes each connection has received and how many its peer has
acknowledged; the router knows how many it took and sent. The difference is the client's queue, wherever it lies.

A thread of its own reads the kernel's numbers, so that the engine thread only adds up two. libzmq tells in its monitor
which descriptors it has accepted; a duplicate of each is held here until libzmq is done with it, so that it is never
another file with the same number that is cut off.
"""

from __future__ import annotations

import os
import resource
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Final, get_args

import zmq

from engine.status import CutReason
from engine.wire import limits

_EVENTS: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_EVENT: Final = struct.Struct("=Hi")
_ROUND_SECONDS: Final = 0.1
"""Between two looks at the same connection."""
_OPEN_ROUNDS: Final = 4
"""Looks at which the same message was still growing, of those behind which the router has settled: four a second at
least, because of the monitor's pings."""
_SLICE: Final = 16
"""Connections looked at in a row: about 50 us, for which the engine thread may have to wait."""
_SLICE_REST_MS: Final = 1
_TCP_INFO_BYTES: Final = 136
_ACKED_AND_RECEIVED: Final = struct.Struct("=QQ")
_ACKED_OFFSET: Final = 120
"""`tcpi_bytes_acked`, and behind it `tcpi_bytes_received`; Linux 4.1."""
_MOST_CONNECTIONS: Final = 4096
_RESET: Final = struct.pack("=ii", 1, 0)
"""SO_LINGER: what is not sent yet is thrown away when the connection is closed."""


class Traffic:
    """What the router has taken from and sent to one client, in bytes on the wire. Written by the engine thread."""

    __slots__ = ("sent", "taken")

    def __init__(self) -> None:
        self.taken = 0
        self.sent = 0


class _Connection:
    """One accepted connection. Belongs to the watching thread."""

    def __init__(self, descriptor: socket.socket, peer: str, since: float) -> None:
        self.descriptor = descriptor
        self.peer = peer
        self.since = since
        self.client: bytes | None = None
        """Its name at the router; None until a message of it was taken."""
        self.traffic = Traffic()
        self.before = 0
        """Received before its traffic was counted."""
        self.received = 0
        """At the last look."""
        self.open_rounds = 0
        """Looks in a row at which the end of a long message had not come, and more of it had."""
        self.taken = 0
        """At the last look."""
        self.is_cut = False

    def look(self) -> tuple[int, int]:
        """Bytes that its peer has acknowledged, and bytes received from it. Raises OSError."""
        info = self.descriptor.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        acked, received = _ACKED_AND_RECEIVED.unpack_from(info, _ACKED_OFFSET)
        return acked, received


class Connections:
    """`attach` once, then `work` on a thread of its own; `claim`, `cut` and `forgotten` are the engine thread's."""

    def __init__(self, warn: Callable[[str], None], clock: Callable[[], float]) -> None:
        """`warn` takes what an operator should read, on the watching thread."""
        self.counts: Final[Counter[CutReason]] = Counter(dict.fromkeys(get_args(CutReason), 0))
        """Connections that were cut off. Read by any thread."""
        self.settled = 0
        """Grows whenever the router has found that no whole message waits. Written by the engine thread."""
        self._warn = warn
        self._clock = clock
        self._monitor: zmq.Socket[bytes] | None = None
        self._port = 0
        self._by_descriptor: dict[int, _Connection] = {}
        self._by_client: dict[bytes, _Connection] = {}
        self._claims: deque[tuple[bytes, int, Traffic]] = deque()
        self._wanted: deque[tuple[bytes, CutReason]] = deque()
        self._gone: deque[bytes] = deque()
        self._seen_settled = 0
        self._next_round = clock()
        self._most = min(_MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    def attach(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> None:
        """Begins to listen to a socket that is not bound yet."""
        address = f"inproc://kvkeep.connections.{id(self)}"
        router.monitor(address, _EVENTS)
        self._monitor = context.socket(zmq.PAIR)
        # NOTE: Without a limit: libzmq's own thread would wait until there is room.
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.connect(address)

    def bound(self, port: int) -> None:
        """Tells where the socket listens."""
        self._port = port

    def claim(self, client: bytes, descriptor: int) -> Traffic:
        """The counts of a client that sends its first message, over the connection of this descriptor."""
        traffic = Traffic()
        self._claims.append((client, descriptor, traffic))
        return traffic

    def cut(self, client: bytes, reason: CutReason) -> None:
        """Ends a client's connection, soon."""
        self._wanted.append((client, reason))

    def forgotten(self) -> Iterator[bytes]:
        """The clients whose connections have ended since this was asked last."""
        while self._gone:
            yield self._gone.popleft()

    def work(self) -> float:
        """Waits for news for a part of a round, and looks at all connections once a round; returns the rest to take."""
        assert self._monitor is not None, "not attached"
        left = self._next_round - self._clock()
        self._monitor.poll(max(0, int(left * 1000)))
        # NOTE: Before the claims are read: of what the router had taken by then, all is claimed.
        settled = self.settled
        self._catch_up()
        if self._clock() >= self._next_round:
            self._next_round = self._clock() + _ROUND_SECONDS
            self._look_at_all(has_settled=settled != self._seen_settled)
            self._seen_settled = settled
        return 0.0

    def close(self) -> None:
        """To be called when the watched socket has been closed."""
        for connection in self._by_descriptor.values():
            connection.descriptor.close()
        self._by_descriptor.clear()
        self._by_client.clear()
        if self._monitor is not None:
            self._monitor.close(linger=0)

    def _catch_up(self) -> None:
        """Connections that came and went, and what the router wants."""
        # NOTE: A client is claimed after libzmq has told of its connection, which therefore must be read later.
        claims = [self._claims.popleft() for _ in range(len(self._claims))]
        for event, descriptor in self._events():
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(descriptor)
            else:
                self._ended(descriptor)
        for client, descriptor, traffic in claims:
            self._claimed(client, descriptor, traffic)
        while self._wanted:
            client, reason = self._wanted.popleft()
            if (connection := self._by_client.get(client)) is not None:
                self._cut(connection, reason)

    def _events(self) -> Iterator[tuple[int, int]]:
        assert self._monitor is not None
        while self._monitor.poll(0):
            event, _ = self._monitor.recv_multipart(zmq.NOBLOCK)
            number, value = _EVENT.unpack(event)
            if number in (zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED):
                yield number, value  # another one tells that the socket was closed

    def _accepted(self, descriptor: int) -> None:
        self._ended(descriptor)
        connection = self._duplicate(descriptor)
        if connection is None:
            return
        self._by_descriptor[descriptor] = connection
        if len(self._by_descriptor) > self._most:
            silent = (each for each in self._by_descriptor.values() if each.client is None and not each.is_cut)
            self._cut(next(silent, connection), "connections")

    def _duplicate(self, descriptor: int) -> _Connection | None:
        """The connection behind a descriptor; None if it has ended already and the number is free or another file's."""
        try:
            copy = os.dup(descriptor)
        except OSError:
            return None
        try:
            found = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            return None
        try:
            host, port = found.getpeername()[:2]
            is_ours = found.getsockname()[1] == self._port
        except (OSError, ValueError, IndexError):
            is_ours = False
        if not is_ours:
            found.close()
            return None
        return _Connection(found, f"{host}:{port}", self._clock())

    def _ended(self, descriptor: int) -> None:
        connection = self._by_descriptor.pop(descriptor, None)
        if connection is not None:
            connection.descriptor.close()
            self._unclaim(connection)

    def _claimed(self, client: bytes, descriptor: int, traffic: Traffic) -> None:
        connection = self._by_descriptor.get(descriptor)
        if connection is None:
            self._gone.append(client)
            return
        if connection.client is not None:
            # One of both was the descriptor's former owner: its last messages may be taken after its end.
            self._unclaim(connection)
            connection.before = connection.received
        connection.client, connection.traffic = client, traffic
        self._by_client[client] = connection

    def _unclaim(self, connection: _Connection) -> None:
        if connection.client is not None:
            self._gone.append(connection.client)
            if self._by_client.get(connection.client) is connection:
                del self._by_client[connection.client]

    def _look_at_all(self, *, has_settled: bool) -> None:
        assert self._monitor is not None
        for number, (descriptor, connection) in enumerate(list(self._by_descriptor.items())):
            if number % _SLICE == _SLICE - 1:
                self._monitor.poll(_SLICE_REST_MS)
                self._catch_up()
            if not connection.is_cut and self._by_descriptor.get(descriptor) is connection:
                self._look(connection, has_settled=has_settled)

    def _look(self, connection: _Connection, *, has_settled: bool) -> None:
        """`has_settled`: since the last look the router has found that no whole message waits."""
        try:
            acked, received = connection.look()
        except OSError:
            return
        traffic = connection.traffic
        forgiven = (self._clock() - connection.since) * limits.FORGIVEN_PER_SECOND
        taken = connection.before + traffic.taken + forgiven
        before, connection.received = connection.received, received
        is_open = 0.0
        if has_settled:
            # What had come by the last look, and was not taken since, belongs to a message that is not whole.
            is_open = before - taken
            is_growing = is_open > limits.MAX_OPEN_SLOWLY and received > before and traffic.taken == connection.taken
            connection.open_rounds = connection.open_rounds + 1 if is_growing else 0
            connection.taken = traffic.taken
        if received - taken > limits.MAX_QUEUE:
            self._cut(connection, "queue")
        elif is_open > limits.MAX_OPEN or connection.open_rounds >= _OPEN_ROUNDS:
            self._cut(connection, "open_message")
        elif traffic.sent - acked - forgiven > limits.MAX_UNREAD:
            self._cut(connection, "unread_replies")

    def _cut(self, connection: _Connection, reason: CutReason) -> None:
        """NOTE: A shutdown both ways has the kernel reset the connection when more comes, and libzmq close it."""
        if connection.is_cut:
            return
        connection.is_cut = True
        self.counts[reason] += 1
        self._warn(f"the connection of {connection.peer} was cut off: {_SENTENCES[reason]}")
        try:
            connection.descriptor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.descriptor.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended by itself


_SENTENCES: Final[dict[CutReason, str]] = {
    "queue": f"more than {limits.MAX_QUEUE} bytes of it wait",
    "open_message": "it sent a message that does not end",
    "unread_replies": f"it does not read: {limits.MAX_UNREAD} bytes or {limits.SENT_MESSAGES} replies wait for it",
    "frames": f"it sent a message of more than {limits.MAX_FRAMES} frames",
    "connections": "there are too many connections",
}
