"""What watches the data path, as metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client.core import Metric

from engine import CheckReport, LoopReport
from service.configuration import ReloadReport
from service.metrics.families import counters, gauge, gauges

CHECKS: Final = ("engine", "socket", "transfer", "loops", "monitor")
LOOPS: Final = ("engine", "transfer", "monitor")
"""Those that are there from the start, with zeros before there is an engine."""


def loop_series(loops: Sequence[LoopReport]) -> Iterator[Metric]:
    """How fresh every loop is, whether it runs, and how often it has failed and was begun again."""
    ages = dict.fromkeys(LOOPS, 0.0) | {loop.name: loop.beat_age_seconds for loop in loops}
    running = dict.fromkeys(LOOPS, False) | {loop.name: loop.state == "running" for loop in loops}
    restarts = dict.fromkeys(LOOPS, 0) | {loop.name: loop.restarts for loop in loops}
    exceptions = dict.fromkeys(LOOPS, 0) | {loop.name: loop.exceptions for loop in loops}
    yield gauges(
        "kvkeep_loop_beat_age_seconds",
        "Seconds since a loop last showed that it is alive; 0 while it waits for something to do.",
        ["loop"],
        [([name], age) for name, age in ages.items()],
    )
    yield gauges(
        "kvkeep_loop_running",
        "1 while a loop runs; 0 after a defect until it is begun again, and where it has ended.",
        ["loop"],
        [([name], is_running) for name, is_running in running.items()],
    )
    yield counters(
        "kvkeep_loop_exceptions_total",
        "Defects that a loop has met.",
        ["loop"],
        [([name], count) for name, count in exceptions.items()],
    )
    yield counters(
        "kvkeep_loop_restarts_total",
        "Times that a loop was started again after it had failed.",
        ["loop"],
        [([name], count) for name, count in restarts.items()],
    )


def check_series(checks: Sequence[CheckReport], required_tiers: Sequence[str] = ()) -> Iterator[Metric]:
    """Whether every check passed, and how long it took; 0 seconds stand for a check that has not come back."""
    names = [*CHECKS, *(f"l2:{tier}" for tier in required_tiers)]
    passing = dict.fromkeys(names, False) | {each.name: each.ok for each in checks}
    latencies = dict.fromkeys(names, 0.0) | {each.name: each.latency_seconds or 0.0 for each in checks}
    yield gauges(
        "kvkeep_check_ok",
        "1 while a check of the data path passes.",
        ["check"],
        [([name], ok) for name, ok in passing.items()],
    )
    yield gauges(
        "kvkeep_check_latency_seconds",
        "Seconds that a check of the data path took when it last came back.",
        ["check"],
        [([name], seconds) for name, seconds in latencies.items()],
    )


def reload_series(report: ReloadReport) -> Iterator[Metric]:
    """How the newest reading of the configuration ended; the one at the start counts."""
    yield gauge("kvkeep_config_reload_success", "1 while what the file says is in force.", report.is_success)
    yield gauge("kvkeep_config_last_reload_timestamp_seconds", "When the configuration was last read.", report.at)
