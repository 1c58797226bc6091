"""A connection of a client on which every request has to be answered, once and in time."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple

import zmq

from engine.wire import codec
from engine.wire import messages as m
from tests.unit.engine.support import packed, unpacked

LIMIT = 20.0
"""Seconds within which every request is answered: a promise, not a speed."""
_SLICE = 0.25


class WrongError(Exception):
    """The server broke a promise."""


class Tally:
    """Counts of a whole process. Safe for threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: Counter[str] = Counter()
        self.slowest = 0.0
        """Seconds that the slowest answer took."""

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            self._counts[name] += count

    def answered(self, name: str, seconds: float) -> None:
        with self._lock:
            self._counts[f"request {name}"] += 1
            self.slowest = max(self.slowest, seconds)

    def take(self) -> dict[str, int]:
        """What was counted since the last call."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return dict(taken)


class Diary:
    """The last things that one client did."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=80)

    def note(self, line: str) -> None:
        self._lines.append(f"{time.monotonic():.3f} {line}")

    def lines(self) -> list[str]:
        return list(self._lines)


class _Pending(NamedTuple):
    name: str
    op: bytes
    sent: float


class Connection:
    """A DEALER socket. Belongs to one thread; `idle` is called now and then while it waits."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        url: str,
        tally: Tally,
        diary: Diary,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(url)
        self._tally = tally
        self._diary = diary
        self._idle = idle
        self._next = 0
        self._pending: dict[bytes, _Pending] = {}
        self._answers: dict[bytes, Any] = {}
        # Every client begins with questions: one that begins with a ping has lost its connection.
        if self.ask(m.GetChunkSize()) is None:
            raise WrongError("the server does not tell its chunk size")

    def start(self, message: m.Message) -> bytes:
        """Sends a request; returns its uid."""
        operation = codec.BY_MESSAGE[type(message)]
        uid, op = packed(self._next), packed(operation.id or operation.name)
        self._next += 1
        self._pending[uid] = _Pending(operation.name, op, time.monotonic())
        self._socket.send_multipart([uid, op, *codec.encode(message)])
        return uid

    def result(self, uid: bytes) -> Any:
        """Waits for an answer; None for one without a value. Raises WrongError if it does not come."""
        while uid not in self._answers:
            self._pump(_SLICE)
        return self._answers.pop(uid)

    def ask(self, message: m.Message) -> Any:
        return self.result(self.start(message))

    def ready(self, uid: bytes) -> bool:
        """Whether the answer is there."""
        self._pump(0)
        return uid in self._answers

    def finish(self) -> None:
        """Waits for everything that was not answered yet, and closes."""
        while self._pending:
            self._pump(_SLICE)
        self.close()

    def close(self) -> None:
        self._socket.close()

    def _pump(self, seconds: float) -> None:
        """Takes what has come, waiting for something if there is nothing."""
        wait = int(seconds * 1000)
        while self._socket.poll(wait):
            self._take(self._socket.recv_multipart())
            wait = 0
        now = time.monotonic()
        for pending in self._pending.values():
            if now - pending.sent > LIMIT:
                raise WrongError(f"{pending.name} was not answered within {LIMIT:g} s")
        if wait:
            self._idle()

    def _take(self, frames: list[bytes]) -> None:
        pending = self._pending.pop(frames[0], None)
        if pending is None or frames[1] != pending.op:
            raise WrongError(f"a reply that nobody waits for: {frames}")
        self._tally.answered(pending.name, time.monotonic() - pending.sent)
        self._answers[frames[0]] = unpacked(frames[2]) if len(frames) > 2 else None
