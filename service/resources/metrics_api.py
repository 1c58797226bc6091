"""The metrics, for Prometheus."""

from __future__ import annotations

from typing import Any

import falcon

from engine import EngineError, StatusReport
from service.context import Context
from service.operations import operation


class Metrics:
    """Exposes the engine's newest report."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("getMetrics", 200)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The numbers, all zero while there is no engine."""
        # PERF: The client library takes a tenth of the time that a start has, and nobody scrapes that early.
        from service import metrics

        resp.content_type = metrics.CONTENT_TYPE
        resp.data = metrics.exposition(self._report())

    def _report(self) -> StatusReport | None:
        engine = self._context.engine()
        try:
            return engine.status() if engine else None
        except EngineError:
            return None


def routes(context: Context) -> list[tuple[str, Any]]:
    """The metrics' route."""
    return [("/metrics", Metrics(context))]
