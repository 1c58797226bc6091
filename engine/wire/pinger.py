"""A client of the data plane that only asks for a sign of life. Belongs to one thread."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import Final

import zmq

from engine.wire import messages as m
from engine.wire.codec import BY_MESSAGE, encode_value

_ANY: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
"""Addresses that are listened on and cannot be connected to, with the loopback of the same family."""


class Pinger:
    """Sends `noop` over TCP, as any client would: no worker, no session, nothing that counts as a failure.

    A connection that does not answer is given up for a new one, so that a socket bound again is found again.
    """

    socket: zmq.Socket[bytes]
    """For polling only. There is none before `connect`, and another one after each."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint`: what the data plane is bound to, such as `tcp://0.0.0.0:5555`."""
        self._endpoint = reachable(endpoint)
        self._op = encode_value(BY_MESSAGE[m.Noop].id)
        self._uids = count(1)
        self._uid = b""
        self._context = zmq.Context()

    def connect(self) -> None:
        """Makes a connection, and gives up the one there is.

        Raises zmq.ZMQError, and then keeps the one there is: there may be no file descriptor for another.
        """
        made = self._context.socket(zmq.DEALER)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.IPV6, int("[" in self._endpoint))
        made.connect(self._endpoint)
        if hasattr(self, "socket"):
            self.socket.close(linger=0)
        self.socket = made

    def ask(self) -> None:
        """Sends a ping; answers to the ones before do not count any more. Never blocks."""
        self._uid = encode_value(next(self._uids))
        with suppress(zmq.Again):
            self.socket.send_multipart([self._uid, self._op], zmq.NOBLOCK)

    def is_answered(self) -> bool:
        """Takes what has come; True if the answer to the newest ping was among it. Never blocks."""
        answered = False
        with suppress(zmq.Again):
            while True:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
                answered = answered or frames[:2] == [self._uid, self._op]
        return answered

    def close(self) -> None:
        self._context.destroy(linger=0)


def reachable(endpoint: str) -> str:
    """Where to connect to for what is bound to an endpoint."""
    scheme, _, address = endpoint.partition("://")
    host, _, port = address.rpartition(":")
    return f"{scheme}://{_ANY.get(host, host)}:{port}"
