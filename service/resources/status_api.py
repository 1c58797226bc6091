"""The status, and its newer name."""

from __future__ import annotations

from typing import Any

import falcon

from service.context import Context, JsonObject
from service.operations import operation
from service.status_view import status_body


def _no_status(reason: str) -> JsonObject:
    return {"error": reason}


class Status:
    """Shows the engine's newest report."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("getStatus", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The report, also when it is not a healthy one."""
        with self._context.running_engine(_no_status) as engine:
            resp.media = status_body(engine.status())


class StatusAlias(Status):
    """The same under the path that newer clients call."""

    @operation("getStatusAlias", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The report, also when it is not a healthy one."""
        super().on_get(req, resp)


def routes(context: Context) -> list[tuple[str, Any]]:
    """The status under both of its names."""
    return [("/api/status", Status(context)), ("/status", StatusAlias(context))]
