"""How far the allocation of L1 is at the start, for the log, the probes and systemd; and the way to give it up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from engine import GIB

log = logging.getLogger("kvkeep")

_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True, slots=True)
class Allocation:
    """One moment of it."""

    ratio: float = 0.0
    """The part of L1 that is allocated, 0 to 1."""
    bytes_per_second: float | None = None
    """None while there is nothing to tell it from, and when all is done."""
    seconds_left: float | None = None
    """None where the speed is."""


NOTHING_YET, COMPLETE = Allocation(), Allocation(1.0)


class StoppedError(Exception):
    """The start was given up, since somebody asked to stop."""


class StartProgress:
    """Called by the engine whenever more of L1 is allocated. Writes a line every few seconds and one at the end."""

    def __init__(
        self,
        size: int,
        is_stopping: Callable[[], bool],
        tell: Callable[[Allocation], None],
        notify: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        """`tell` takes each moment, `notify` the lines on the way. Sizes in bytes, the clock in seconds."""
        self._size = size
        self._is_stopping = is_stopping
        self._tell = tell
        self._notify = notify
        self._clock = clock
        self._began: tuple[float, int] | None = None
        """When the first piece was there, and how large it was."""
        self._line_at = 0.0

    def __call__(self, done: int) -> None:
        """Raises StoppedError."""
        if self._is_stopping():
            raise StoppedError
        now = self._clock()
        if self._began is None:
            self._began, self._line_at = (now, done), now
        moment = self._moment(now, *self._began, done)
        self._tell(moment)
        if done == self._size or now - self._line_at >= _SECONDS_BETWEEN_LINES:
            self._line_at = now
            self._say(moment, done)

    def _moment(self, now: float, began: float, first: int, done: int) -> Allocation:
        if now <= began or done == first:
            return Allocation(done / self._size)
        speed = (done - first) / (now - began)
        return Allocation(done / self._size, speed, (self._size - done) / speed)

    def _say(self, moment: Allocation, done: int) -> None:
        line = f"L1: {100 * moment.ratio:.0f} % allocated, {done / GIB:.1f} of {self._size / GIB:.1f} GiB"
        if moment.bytes_per_second is not None and moment.seconds_left is not None:
            line += f", {moment.bytes_per_second / GIB:.1f} GiB/s, {_duration(moment.seconds_left)} left"
        log.info("%s", line)
        if done < self._size:
            self._notify(line)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
