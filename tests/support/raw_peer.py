"""A peer that speaks ZMTP by hand, so that it can break it: a TCP connection that has shaken hands as a DEALER."""

from __future__ import annotations

import socket
import struct
from typing import Self

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
HANDSHAKE_BYTES = len(GREETING) + 2 + len(_READY)
MORE = 1


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def frame(body: bytes, *, more: bool = False) -> bytes:
    """One frame as it stands on the wire."""
    flags = MORE if more else 0
    if len(body) <= 255:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 2]) + struct.pack(">Q", len(body)) + body


def message(*bodies: bytes) -> bytes:
    *first, last = bodies
    return b"".join(frame(body, more=True) for body in first) + frame(last)


class RawPeer:
    """Sends what it is told to, and reads nothing behind the handshake unless it is told to."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(GREETING)
        self._read(64)
        self.socket.sendall(bytes([4, len(_READY)]) + _READY)
        self._read(self._read(2)[1])

    def send(self, data: bytes) -> bool:
        """False if the connection has been cut off."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def is_cut(self) -> bool:
        """Whether the other side has ended the connection; waits for more otherwise."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def _read(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            found += self.socket.recv(count - len(found))
        return found
