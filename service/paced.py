"""A value that many ask for and that is costly to make."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_TOO_OLD = 10
"""Intervals after which the last value is not given away any more while the next one is made."""


class Paced(Generic[T]):
    """Makes a value anew for each who asks, as long as not many do: once every `interval` seconds, and what was not
    asked for is saved up, to `burst` times at most. Beyond that the last value is given away.

    One thread makes it at a time. The others get the last one meanwhile, unless there is none or nobody has asked for
    long; then they wait for it. `get` may be called from any thread.
    """

    def __init__(
        self, make: Callable[[], T], interval: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`make`: what it raises goes to the one who asked, and is not kept."""
        self._make = make
        self._interval = interval
        self._burst = burst
        self._clock = clock
        self._making = threading.Lock()
        self._credit = float(burst)
        self._credited = clock()
        self._last: tuple[float, T] | None = None
        """When the making of the last value began, and the value. Replaced as a whole."""

    def get(self) -> T:
        """The value, made now if that is due."""
        last = self._last
        if last is None or self._clock() - last[0] > _TOO_OLD * self._interval:
            with self._making:
                # Somebody may have made it while this one waited.
                return self._due() if self._last is last or self._last is None else self._last[1]
        if not self._making.acquire(blocking=False):
            return last[1]
        try:
            return self._due()
        finally:
            self._making.release()

    def _due(self) -> T:
        now = self._clock()
        self._credit = min(self._burst, self._credit + (now - self._credited) / self._interval)
        self._credited = now
        if self._last is not None and self._credit < 1:
            return self._last[1]
        self._credit -= 1
        self._last = (now, self._make())
        return self._last[1]
