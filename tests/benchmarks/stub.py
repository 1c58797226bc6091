"""A server that knows nothing and answers at once: what a lookup costs before any server has done anything."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Self

import zmq

LOOKUP = b"\x08"
QUERY_PREFETCH_STATUS = b"\x09"
NOTHING: dict[bytes, list[bytes]] = {LOOKUP: [], QUERY_PREFETCH_STATUS: [b"\x00"]}
"""The reply's value frames by operation: none for a lookup, no hits for its result; any other call gets no value."""


class StubServer:
    """The stub in a process of its own."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._parent, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child,), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        assert self._parent.poll(30), "the stub does not start"
        self.url: str = self._parent.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


def _serve(parent: Connection) -> None:
    socket = zmq.Context().socket(zmq.ROUTER)
    parent.send(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}")
    while True:
        identity, uid, operation, *_ = socket.recv_multipart(copy=False)
        name = operation.bytes
        socket.send_multipart([identity.bytes, uid.bytes, name, *NOTHING.get(name, [])])
