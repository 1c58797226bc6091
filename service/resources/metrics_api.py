"""The metrics, for Prometheus."""

from __future__ import annotations

from typing import Any, Final

import falcon

from engine import EngineError, MonitorReport, StatusReport
from service.context import Context
from service.operations import operation
from service.paced import Paced

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

INTERVAL: Final = 1.0
"""Seconds between two expositions where many ask: making one takes a dozen milliseconds away from the engine."""
BURST: Final = 5
"""Expositions that are made at once for those who seldom ask, so that each of them reads what is now."""


NO_CHECKS: Final = MonitorReport((), ())


class Metrics:
    """Exposes the newest reports of the engine and of the HTTP API."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._exposition = Paced(self._made, INTERVAL, BURST)

    @operation("getMetrics", 200)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The numbers, all zero while there is no engine."""
        resp.content_type = CONTENT_TYPE
        resp.data = self._exposition.get()

    def _made(self) -> bytes:
        # PERF: The client library takes a tenth of the time that a start has, and nobody scrapes that early.
        from service import metrics

        engine, context = self._context.engine(), self._context
        health = engine.checks() if engine else NO_CHECKS
        in_force = context.config.in_force
        http = context.http_metrics.report()
        advisor, recording = (engine.advice(), engine.recording()) if engine else (None, None)
        return metrics.exposition(
            metrics.Sources(
                engine=self._report(),
                http=http,
                reload=in_force.report,
                loops=health.loops,
                checks=health.checks,
                advisor=advisor,
                recording=recording,
                tiers=in_force.settings.engine.l2,
            )
        )

    def _report(self) -> StatusReport | None:
        engine = self._context.engine()
        try:
            return engine.status() if engine else None
        except EngineError:
            return None


def routes(context: Context) -> list[tuple[str, Any]]:
    """The metrics' route."""
    return [("/metrics", Metrics(context))]
