"""When a scrub of a tier begins, how fast it goes, and where it goes on after an interruption. Pure: the time and what
stands in its way are arguments.

A *pass* checks every object once. It goes through what a scan of the storage tells of, in the order of the scan. When a
scan breaks off, another one is begun and as many objects are passed over as were done with before: where a storage
tells of its objects in another order then, some are checked twice, and others by the next pass.
"""

from __future__ import annotations

from math import inf
from typing import Final

from engine.settings import ScrubSettings

FIRST_PASS_SECONDS: Final = 600.0
"""From the start, or from the moment when it is switched on, to the first pass, if passes are not more frequent: what
was checked before a restart is not remembered, and a start has other things to do."""
LONGEST_REST: Final = 2.0
"""The settings, and what stands in the way, are looked at as often as that."""
HELD_REST: Final = 0.25
_SHORTEST_REST: Final = 0.005
"""PERF: Shorter ones are saved up."""
ATTEMPTS: Final = 3
"""To read an object, before it is passed over."""
FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 60.0
"""Seconds after a failure of the storage: first, and at most."""
_MOST_FAILURES: Final = 16
"""That make a difference to the rest."""


class ScrubPlan:
    """The course of one tier's passes. Not safe for threads: the caller holds its lock."""

    def __init__(self) -> None:
        self.is_running = False
        """A pass is under way, or is held up."""
        self.begun_at: float | None = None
        self.ended_at: float | None = None
        """When the last pass began, and when the last complete one ended."""
        self._enabled_at: float | None = None
        self._was_asked = False
        """The pass is an operator's wish, and goes on whatever is configured."""
        self._told = 0
        """Objects that the present scan has told of."""
        self._done = 0
        """Objects that the pass has done with."""
        self._read = 0
        """Bytes that were read and not yet rested for, when the newest read began."""
        self._read_at = 0.0
        self._attempts = 0
        """To read the present object."""
        self._failures = 0
        """Of the storage, in a row."""
        self._retry_at = 0.0

    def begin(self, now: float, *, asked: bool) -> None:
        """Begins a pass."""
        self.is_running = True
        self._was_asked = asked
        self.begun_at = now
        self._told = self._done = 0
        self._attempts = self._failures = 0
        self._retry_at = now

    def is_due(self, now: float, settings: ScrubSettings) -> bool:
        """Whether the next pass should begin. Gives up the present one if that is not wanted any more."""
        if not settings.enabled:
            self._enabled_at = None
            self.is_running = self.is_running and self._was_asked
        elif self._enabled_at is None:
            self._enabled_at = now
        return not self.is_running and now >= self._due(settings)

    def rest(self, now: float, settings: ScrubSettings, *, is_held: bool) -> float:
        """Seconds to rest before anything is read: 0 for none, always more without a pass."""
        if not self.is_running:
            return max(_SHORTEST_REST, min(self._due(settings) - now, LONGEST_REST))
        if is_held:
            return HELD_REST
        due = max(self._retry_at, self._read_at + self._read / settings.rate)
        return 0.0 if due - now < _SHORTEST_REST else min(due - now, LONGEST_REST)

    def told(self) -> bool:
        """The scan tells of its next object: whether that is still to be checked."""
        self._told += 1
        return self._told > self._done

    def read(self, began: float, size: int, settings: ScrubSettings) -> None:
        """So many bytes were read.

        The rate is that of a leaky bucket: what was not read while the pass was held up is not made up for.
        """
        rested = int((began - self._read_at) * settings.rate)
        self._read = max(0, self._read - rested) + size
        self._read_at = began

    def done(self) -> None:
        """The object is done with."""
        self._done = self._told
        self._attempts = self._failures = 0

    def failed(self, now: float) -> bool:
        """The storage failed to give the object: whether it is to be tried again. The rest before anything else is
        longer each time."""
        self._wait(now)
        self._attempts += 1
        if self._attempts < ATTEMPTS:
            return True
        self._done = self._told
        self._attempts = 0
        return False

    def scan_failed(self, now: float) -> None:
        """The scan broke off: there will be another one, after a rest that grows."""
        self._wait(now)
        self._told = 0

    def ended(self, now: float) -> None:
        """The scan has no more objects."""
        self.is_running = False
        self.ended_at = now

    def _due(self, settings: ScrubSettings) -> float:
        """When the next pass should begin."""
        if self._enabled_at is None:
            return inf
        interval = 3600 * settings.every_hours
        due = self._enabled_at + min(interval, FIRST_PASS_SECONDS)
        return due if self.ended_at is None else max(due, self.ended_at + interval)

    def _wait(self, now: float) -> None:
        self._retry_at = now + min(FIRST_WAIT * 2.0**self._failures, LONGEST_WAIT)
        self._failures = min(self._failures + 1, _MOST_FAILURES)
