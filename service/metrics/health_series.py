"""What watches the data path, as metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from service.metrics.text import counters, gauges


class Loop(Protocol):
    """A supervised loop."""

    @property
    def name(self) -> str: ...

    @property
    def beat_age_seconds(self) -> float: ...

    @property
    def restarts(self) -> int: ...


class Check(Protocol):
    """The newest result of one check of the data path."""

    @property
    def name(self) -> str: ...

    @property
    def ok(self) -> bool: ...

    @property
    def latency_seconds(self) -> float | None: ...


def loop_series(loops: Sequence[Loop]) -> Iterator[str]:
    """How fresh every loop is, and how often it was started again."""
    yield gauges(
        "kvkeep_loop_beat_age_seconds",
        "Seconds since a loop last showed that it is alive.",
        ["loop"],
        [([loop.name], loop.beat_age_seconds) for loop in loops],
    )
    yield counters(
        "kvkeep_loop_restarts_total",
        "Times that a loop was started again after it had failed.",
        ["loop"],
        [([loop.name], loop.restarts) for loop in loops],
    )


def check_series(checks: Sequence[Check]) -> Iterator[str]:
    """Whether every check passed, and how long it took; 0 seconds stand for a check that has not come back."""
    yield gauges(
        "kvkeep_check_ok",
        "1 while a check of the data path passes.",
        ["check"],
        [([each.name], each.ok) for each in checks],
    )
    yield gauges(
        "kvkeep_check_latency_seconds",
        "Seconds that a check of the data path took when it last came back.",
        ["check"],
        [([each.name], each.latency_seconds or 0.0) for each in checks],
    )
