"""How long the server was awake, which is all the time that its clients' silence is measured in. Pure.

A machine that was suspended, or a process that was stopped, wakes up with the signs of life of its clients still unread
in the socket. The monotonic clock has gone on meanwhile; who is judged by it is taken for dead though he is not. So
time in which nothing at all happened here does not count against anybody: that of a standstill of this process.

It does count where others go on meanwhile: what protects the blocks of a client, whose patience has run on, is
measured by the clock itself.
"""

from __future__ import annotations

from typing import Final

LONGEST_PAUSE: Final = 3.0
"""Seconds between two events of a server that is awake; it hears of the time each second."""


class Awake:
    """A clock that stands still while the server does. Belongs to the engine thread."""

    def __init__(self) -> None:
        self._heard: float | None = None
        self._offset = 0.0

    @property
    def now(self) -> float:
        """Seconds; comparable with nothing but earlier values of this."""
        return (self._heard or 0.0) - self._offset

    def hear(self, time: float) -> None:
        """An event came, at this time of the monotonic clock.

        NOTE: Events of other threads carry the time at which those have posted them, so times go back a little, too.
        """
        pause = 0.0 if self._heard is None else time - self._heard
        if abs(pause) > LONGEST_PAUSE:
            self._offset += pause
            self._heard = time
        elif self._heard is None or pause > 0:
            self._heard = time
