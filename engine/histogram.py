"""Durations counted by upper bound. Pure: whoever has a clock says how long something took."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple


class HistogramReport(NamedTuple):
    """What a histogram has counted so far."""

    # PERF: A named tuple, since the engine thread makes one with every report, and they cost half of a dataclass.

    bounds: tuple[float, ...]
    """Upper bounds in seconds, rising; each belongs to its own bucket."""
    counts: tuple[int, ...]
    """Durations by bucket, not summed up: one more than there are bounds, the last for what is above all of them."""
    sum: float
    """All durations together, in seconds."""

    @property
    def total(self) -> int:
        """How many durations were counted."""
        return sum(self.counts)


NOTHING_COUNTED = HistogramReport((), (0,), 0.0)


class Histogram:
    """Counts durations. Belongs to one thread; its snapshots may go anywhere."""

    __slots__ = ("_bounds", "_counts", "_snapshot", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: in seconds, rising."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._snapshot: HistogramReport | None = None

    def observe(self, seconds: float) -> None:
        """Counts one duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds
        self._snapshot = None

    def snapshot(self) -> HistogramReport:
        """What was counted so far; the same object for as long as nothing is added."""
        if self._snapshot is None:
            self._snapshot = HistogramReport(self._bounds, tuple(self._counts), self._sum)
        return self._snapshot
