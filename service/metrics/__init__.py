"""The metrics as Prometheus reads them. Nothing is counted here: every number comes from a report.

Where a metric means the same as one of LMCache 0.5 it has the name under which that is exposed, so that dashboards go
on working; it has not its labels, but is the sum over them. Every series exists from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine import StatusReport
from service.configuration import ReloadReport
from service.http_metrics import HttpReport
from service.metrics.engine_series import engine_series
from service.metrics.health_series import Check, Loop, check_series, loop_series, reload_series
from service.metrics.http_series import http_series
from service.metrics.process_series import process_series


@dataclass(frozen=True, slots=True)
class Sources:
    """What the metrics are made of."""

    engine: StatusReport | None
    """None stands for an engine that is not there."""
    http: HttpReport
    reload: ReloadReport
    loops: Sequence[Loop] = ()
    checks: Sequence[Check] = ()


def exposition(sources: Sources) -> bytes:
    """All metrics in the text format."""
    parts = [
        *process_series(),
        *engine_series(sources.engine),
        *loop_series(sources.loops),
        *check_series(sources.checks),
        *reload_series(sources.reload),
        *http_series(sources.http),
    ]
    return "".join(parts).encode()
