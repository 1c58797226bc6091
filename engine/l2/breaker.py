"""Whether a storage that has failed should be asked again. Pure: the time and the jitter are arguments.

The circuit breaker of Nygard: Release It!, 2007, with a wait that doubles from failure to failure (exponential backoff
with jitter).
"""

from __future__ import annotations

from typing import Final

FAILURES: Final = 5
"""Failures in a row after which it is not asked for a while."""
FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 15.0
"""Seconds until it is tried again: first, and at most."""


class Breaker:
    """Closed while all is well; open after several failures in a row; half-open while one trial is under way.

    Not safe for threads: the caller holds its lock.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._wait = FIRST_WAIT
        self._retry_at: float | None = None
        """When the next trial may be made; None while it is closed."""
        self._is_trying = False

    @property
    def is_open(self) -> bool:
        """Also while it is half-open."""
        return self._retry_at is not None

    def blocks(self, now: float) -> bool:
        """Whether nothing may be asked now, not even as a trial."""
        return self._retry_at is not None and (self._is_trying or now < self._retry_at)

    def begin(self, now: float) -> bool:
        """Whether a call may be made, which then has to end in `succeeded` or `failed`."""
        if self.blocks(now):
            return False
        self._is_trying = self._retry_at is not None
        return True

    def succeeded(self) -> None:
        self._failures = 0
        self._wait = FIRST_WAIT
        self._retry_at = None
        self._is_trying = False

    def failed(self, now: float, jitter: float) -> None:
        """`jitter` in [0, 1) makes the wait up to a half shorter, so that not all servers try at the same time."""
        self._failures += 1
        if self._failures < FAILURES:
            return
        # Calls that had begun before it opened do not make the wait longer.
        if self._retry_at is None or self._is_trying:
            self._retry_at = now + self._wait * (1 - jitter / 2)
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._is_trying = False
