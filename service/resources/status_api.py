"""The status, and its newer name."""

from __future__ import annotations

import json
from typing import Any

import falcon

from engine import StatusReport
from service.context import Context, JsonObject
from service.loop_view import loop_bodies
from service.operations import operation
from service.status_view import status_body


def _no_status(reason: str) -> JsonObject:
    return {"error": reason}


class _Rendered:
    """The body of the newest report, made once however often it is asked for. May be used from any thread."""

    def __init__(self) -> None:
        self._newest: tuple[StatusReport, bytes] | None = None
        """Replaced as a whole. Two threads may both make one; either is good."""

    def body(self, report: StatusReport) -> bytes:
        """The report in JSON."""
        newest = self._newest
        if newest is None or newest[0] is not report:
            newest = self._newest = (report, json.dumps(status_body(report), ensure_ascii=False).encode())
        return newest[1]


class Status:
    """Shows the engine's newest report."""

    def __init__(self, context: Context, rendered: _Rendered) -> None:
        self._context = context
        self._rendered = rendered

    @operation("getStatus", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The report, also when it is not a healthy one."""
        with self._context.running_engine(_no_status) as engine:
            body = self._rendered.body(engine.status())
            loops = json.dumps(loop_bodies(engine.checks().loops)).encode()
            # PERF: Put together from bytes, since the report is the larger part and often the same as before.
            resp.data = body[:-1] + b', "loops": ' + loops + b"}"


class StatusAlias(Status):
    """The same under the path that newer clients call."""

    @operation("getStatusAlias", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The report, also when it is not a healthy one."""
        super().on_get(req, resp)


def routes(context: Context) -> list[tuple[str, Any]]:
    """The status under both of its names."""
    rendered = _Rendered()
    return [("/api/status", Status(context, rendered)), ("/status", StatusAlias(context, rendered))]
