"""A value that many ask for and that is made seldom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_TOO_OLD = 10
"""Intervals after which the last value is not given away any more while the next one is made."""


class Paced(Generic[T]):
    """Makes a value when it is asked for, by one thread at a time, and not more often than every `interval` seconds.

    While one thread makes it, the others get the last one, unless there is none or nobody has asked for long; then they
    wait. `get` may be called from any thread.
    """

    def __init__(self, make: Callable[[], T], interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`make`: what it raises goes to the one who asked, and is not kept."""
        self._make = make
        self._interval = interval
        self._clock = clock
        self._making = threading.Lock()
        self._last: tuple[float, T] | None = None
        """When the making of the last value began, and the value. Replaced as a whole."""

    def get(self) -> T:
        """The value; older than `interval` only while the next one is being made."""
        last = self._last
        if last is not None and self._age(last) < self._interval:
            return last[1]
        if last is None or self._age(last) > _TOO_OLD * self._interval:
            with self._making:
                return self._made()
        if not self._making.acquire(blocking=False):
            return last[1]
        try:
            return self._made()
        finally:
            self._making.release()

    def _made(self) -> T:
        """Somebody may have made it while the caller waited."""
        last = self._last
        if last is None or self._age(last) >= self._interval:
            began = self._clock()
            last = self._last = (began, self._make())
        return last[1]

    def _age(self, value: tuple[float, T]) -> float:
        return self._clock() - value[0]
