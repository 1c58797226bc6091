"""What watches the data path, as metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client.core import Metric

from engine import PERIODIC_JOBS, CheckReport, LoopReport
from service.configuration import ReloadReport
from service.metrics.families import counters, gauge, gauges

CHECKS: Final = ("engine", "socket", "transfer", "loops", "monitor")
LOOPS: Final = (
    "engine",
    "transfer",
    "monitor",
    "connections",
    "advisor",
    "recorder",
    "config-watch",
    "waitress",
    *(f"tick:{job}" for job in PERIODIC_JOBS),
)
"""Those that are there from the start, with zeros before there is an engine."""
_NUMBERED: Final = re.compile(r"(waitress|l2-.+)-(?:keeper|scrubber|[rw]?\d+)")
"""Threads that are told as one: those of HTTP, and those of a tier."""


def loop_series(loops: Sequence[LoopReport], tiers: Sequence[str] = ()) -> Iterator[Metric]:
    """How fresh every loop is, whether it runs, and how often it has failed and was begun again."""
    told: dict[str, list[LoopReport]] = {name: [] for name in (*LOOPS, *(f"l2-{tier}" for tier in tiers))}
    for loop in loops:
        told.setdefault(_told_as(loop.name), []).append(loop)
    yield gauges(
        "kvkeep_loop_beat_age_seconds",
        "Seconds since a loop last showed that it is alive; 0 while it waits for something to do.",
        ["loop"],
        [([name], max((each.beat_age_seconds for each in found), default=0.0)) for name, found in told.items()],
    )
    yield gauges(
        "kvkeep_loop_running",
        "1 while a loop runs; 0 after a defect until it is begun again, and where it has ended.",
        ["loop"],
        [([name], bool(found) and all(each.state == "running" for each in found)) for name, found in told.items()],
    )
    yield counters(
        "kvkeep_loop_exceptions_total",
        "Defects that a loop has met.",
        ["loop"],
        [([name], sum(each.exceptions for each in found)) for name, found in told.items()],
    )
    yield counters(
        "kvkeep_loop_restarts_total",
        "Times that a loop was started again after it had failed.",
        ["loop"],
        [([name], sum(each.restarts for each in found)) for name, found in told.items()],
    )


def _told_as(name: str) -> str:
    numbered = _NUMBERED.fullmatch(name)
    return numbered[1] if numbered else name


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
