"""The health check that orchestrators probe, and its newer name."""

from __future__ import annotations

from typing import Any

import falcon

from service.context import Context, JsonObject, refused
from service.operations import operation


def _unhealthy(reason: str) -> JsonObject:
    return {"status": "unhealthy", "reason": reason}


class Healthcheck:
    """Healthy means that the engine runs and that nothing fails which a restart would cure."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("getHealthcheck", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Healthy, or why not."""
        with self._context.running_engine(_unhealthy) as engine:
            failing = engine.checks().failing(liveness_only=True)
        if failing:
            raise refused(503, _unhealthy("; ".join(str(check) for check in failing)))
        resp.media = {"status": "healthy"}


class HealthcheckAlias(Healthcheck):
    """The same under the path that newer clients call."""

    @operation("getHealthcheckAlias", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Healthy, or why not."""
        super().on_get(req, resp)


def routes(context: Context) -> list[tuple[str, Any]]:
    """The check under both of its names."""
    return [("/api/healthcheck", Healthcheck(context)), ("/healthcheck", HealthcheckAlias(context))]
