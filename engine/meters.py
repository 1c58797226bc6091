"""Counts and times of stores and retrieves, from the arrival of a request to the reply that ends it. Pure.

Where the server copies, that is one request. Where the worker copies, it begins with the request that prepares and ends
with the reply to the one that commits, so it includes the worker's own copying.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from engine.histogram import Histogram
from engine.status import TransferDirection, TransferMode, TransferReport

LOOKUP_BOUNDS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
"""Seconds that the engine thread takes for one lookup."""
TRANSFER_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds of one store or retrieve. The last is the age at which copies are given up, unless configured otherwise."""
TIER_BOUNDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Seconds of one call of an adapter of L2."""


class TransferMeter:
    """The stores or the retrieves of one mode. Belongs to the engine thread."""

    def __init__(self, direction: TransferDirection, mode: TransferMode, changed: Callable[[], None]) -> None:
        """`changed` is called whenever the next report will say something else."""
        self._direction: Final = direction
        self._mode: Final = mode
        self._changed: Final = changed
        self._begun = self._ended = self._objects = self._bytes = 0
        self._done = Histogram(TRANSFER_BOUNDS)
        self._failed = Histogram(TRANSFER_BOUNDS)

    def begin(self) -> None:
        """Bytes begin to move: a copy was asked for, or slots were lent."""
        self._begun += 1
        self._changed()

    def end(self, seconds: float, objects: int, size: int, *, done: bool) -> None:
        """What had begun has been answered; `size`: bytes of all its objects, which count if it is done."""
        self._ended += 1
        if done:
            self._objects += objects
            self._bytes += size
        self.answer(seconds, done=done)

    def answer(self, seconds: float, *, done: bool) -> None:
        """A request was answered for which nothing had to move, or that was refused."""
        (self._done if done else self._failed).observe(seconds)
        self._changed()

    def abandon(self) -> None:
        """What had begun will never be answered: its worker is gone."""
        self._ended += 1
        self._changed()

    def report(self) -> TransferReport:
        """All of it so far."""
        return TransferReport(
            direction=self._direction,
            mode=self._mode,
            begun=self._begun,
            ended=self._ended,
            objects=self._objects,
            bytes=self._bytes,
            done=self._done.snapshot(),
            failed=self._failed.snapshot(),
        )


class Meters:
    """One meter for each direction and mode."""

    def __init__(self) -> None:
        self.server_stores: Final = TransferMeter("store", "lmcache_driven", self._changed)
        self.server_retrieves: Final = TransferMeter("retrieve", "lmcache_driven", self._changed)
        self.worker_stores: Final = TransferMeter("store", "engine_driven", self._changed)
        self.worker_retrieves: Final = TransferMeter("retrieve", "engine_driven", self._changed)
        self._reports: tuple[TransferReport, ...] | None = None

    def reports(self) -> tuple[TransferReport, ...]:
        """One for each meter; the same object for as long as nothing changes."""
        if self._reports is None:
            meters = (self.server_stores, self.server_retrieves, self.worker_stores, self.worker_retrieves)
            self._reports = tuple(meter.report() for meter in meters)
        return self._reports

    def _changed(self) -> None:
        self._reports = None
