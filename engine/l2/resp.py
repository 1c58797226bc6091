"""Commands and their answers straight between a connection's socket and the caller's buffers.

The Valkey client copies every value several times. Here a value moves once, and the interpreter is free meanwhile.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any, Final

from libvalkey import ProtocolError, Reader, pack_command

_LINE_END: Final = b"\r\n"
_READ_BYTES: Final = 1 << 16
_PARTS: Final = 1024  # Linux takes no more buffers at once.
_INCOMPLETE: Final = object()
_CLOSED: Final = "the server has closed the connection"


class RefusedError(Exception):
    """What the server says when it refuses a command. The connection can go on."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code: Final = text.partition(" ")[0]


class Exchange:
    """A connection for the length of one call. Belongs to one thread.

    Raises OSError when the connection fails or the deadline passes, and ProtocolError when what comes is no answer.
    """

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        """`deadline` in seconds of the monotonic clock."""
        self.in_step = True
        """Whether every answer was read to its end. Otherwise the connection must never be used again: what is left in
        it would be taken for the answer to the next command."""
        self._socket: Final = connected
        self._deadline: Final = deadline

    def get(self, key: bytes, buffers: Sequence[memoryview]) -> int | None:
        """Fills the buffers with the value and returns its size, or None if there is no value.

        A value of another size is not read: the connection stays out of step. Raises RefusedError.
        """
        size = sum(map(len, buffers))
        self._send([pack_command((b"GET", key))])
        line = self._first_line(b"$%d\r\n" % size)
        self.in_step = line.startswith(b"-") or line == b"$-1"
        found = _size_in(line)
        if found == size:
            self._fill(buffers)
            self.in_step = True
        return found

    def set(self, key: bytes, buffers: Sequence[memoryview], ttl: int | None) -> None:
        """Sets the key to the bytes of all buffers, for `ttl` seconds or for good. Raises RefusedError."""
        options = () if ttl is None else (b"EX", b"%d" % ttl)
        front = b"*%d\r\n%b%b$%d\r\n" % (3 + len(options), _bulk(b"SET"), _bulk(key), sum(map(len, buffers)))
        # PERF: The value leaves together with what stands around it.
        self._send([front, *buffers, _LINE_END + b"".join(map(_bulk, options))])
        [answer] = self.receive(1)
        if isinstance(answer, RefusedError):
            raise answer

    def send(self, commands: Sequence[tuple[bytes, ...]]) -> None:
        """Sends commands. PERF: The client's own pipeline needs several times as long for as many."""
        self._send([b"".join(map(pack_command, commands))])

    def receive(self, count: int) -> list[Any]:
        """The answers to the `count` commands that were sent: int, bytes, None, list or RefusedError each."""
        reader = Reader(replyError=RefusedError, notEnoughData=_INCOMPLETE)
        answers: list[Any] = []
        while len(answers) < count:
            answer = reader.gets()
            if answer is _INCOMPLETE:
                reader.feed(self._receive(_READ_BYTES))
            else:
                answers.append(answer)
        if reader.has_data():
            raise ProtocolError("there are more answers than commands")
        self.in_step = True
        return answers

    def _first_line(self, expected: bytes) -> bytes:
        """The answer's first line, without its end. If it is the expected one, nothing behind it has been read."""
        line = b""
        while len(line) < len(expected) and not line.endswith(_LINE_END):
            line += self._receive(len(expected) - len(line))
        # What this reads too much belongs to a value of another size, which nobody wants.
        while _LINE_END not in line:
            line += self._receive(_READ_BYTES)
        return line.partition(_LINE_END)[0]

    def _fill(self, buffers: Sequence[memoryview]) -> None:
        end = bytearray(len(_LINE_END))
        for rest in (*buffers, memoryview(end)):
            while rest:
                self._limit_wait()
                count = self._socket.recv_into(rest)
                if count == 0:
                    raise ConnectionResetError(_CLOSED)
                rest = rest[count:]
        if end != _LINE_END:
            raise ProtocolError("a value does not end where it should")

    def _receive(self, limit: int) -> bytes:
        self._limit_wait()
        if data := self._socket.recv(limit):
            return data
        raise ConnectionResetError(_CLOSED)

    def _send(self, parts: Sequence[bytes | memoryview]) -> None:
        self.in_step = False
        rest = [memoryview(part) for part in parts]
        while rest:
            self._limit_wait()
            # TLS knows no sending of several buffers.
            secured = isinstance(self._socket, ssl.SSLSocket)
            sent = self._socket.send(rest[0]) if secured else self._socket.sendmsg(rest[:_PARTS])
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if sent:
                rest[0] = rest[0][sent:]

    def _limit_wait(self) -> None:
        """Lets the next operation on the socket wait until the deadline at most."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time is over")
        self._socket.settimeout(left)


def _size_in(line: bytes) -> int | None:
    """What the first line of the answer to GET says. Raises RefusedError."""
    if line.startswith(b"-"):
        raise RefusedError(line[1:].decode(errors="replace"))
    if line == b"$-1":
        return None
    if not line.startswith(b"$") or not line[1:].isdigit():
        raise ProtocolError(f"no value begins with {line[:20]!r}")
    return int(line[1:])


def _bulk(argument: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(argument), argument)
