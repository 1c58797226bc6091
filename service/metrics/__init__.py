"""The metrics as Prometheus reads them. Nothing is counted here: every number comes from a report.

Where a metric means the same as one of LMCache 0.5 it has the name under which that is exposed, so that dashboards go
on working; it has not its labels, but is the sum over them. Every series exists from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from engine import AdvisorReport, CheckReport, L2Settings, LoopReport, RecordingReport, StatusReport
from service.configuration import ReloadReport
from service.http_metrics import HttpReport
from service.metrics.advisor_series import advisor_series, recording_series
from service.metrics.engine_series import engine_series
from service.metrics.health_series import check_series, loop_series, reload_series
from service.metrics.http_series import http_series
from service.metrics.l2_series import every_tier, l2_series
from service.metrics.process_series import process_series


@dataclass(frozen=True, slots=True)
class Sources:
    """What the metrics are made of."""

    engine: StatusReport | None
    """None stands for an engine that is not there."""
    http: HttpReport
    reload: ReloadReport
    loops: Sequence[LoopReport] = ()
    checks: Sequence[CheckReport] = ()
    advisor: AdvisorReport | None = None
    recording: RecordingReport | None = None
    tiers: Sequence[L2Settings] = ()
    """The tiers of L2 that are configured."""


class _Collector(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterable[Metric]:
        sources = self._sources
        tiers = every_tier(sources.engine.l2 if sources.engine else (), sources.tiers)
        yield from process_series()
        yield from engine_series(sources.engine, tiers)
        yield from l2_series(tiers)
        yield from loop_series(sources.loops, [each.name for each in tiers])
        yield from check_series(sources.checks, [each.name for each in tiers if each.is_required])
        yield from reload_series(sources.reload)
        yield from http_series(sources.http)
        yield from advisor_series(sources.advisor)
        yield from recording_series(sources.recording)


def exposition(sources: Sources) -> bytes:
    """All metrics in the text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(sources))
    return generate_latest(registry)
