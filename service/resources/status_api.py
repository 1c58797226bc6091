"""The status, and its newer name."""

from __future__ import annotations

import json
import time
from typing import Any, Final

import falcon

from engine import StatusReport
from service.context import Context, Engine, JsonObject
from service.loop_view import loop_bodies
from service.operations import operation
from service.status_view import status_body

_LOOPS_SECONDS: Final = 0.25
"""How old what is shown of the threads may be: as old as what the monitor has found."""


def _no_status(reason: str) -> JsonObject:
    return {"error": reason}


class _Rendered:
    """The body of the newest report, made once however often it is asked for. May be used from any thread."""

    def __init__(self) -> None:
        self._newest: tuple[StatusReport, bytes] | None = None
        """Replaced as a whole, as the next. Two threads may both make one; either is good."""
        self._loops: tuple[float, bytes] | None = None

    def body(self, engine: Engine) -> bytes:
        """The report in JSON. PERF: Put together from bytes, since most of it is often the same as before."""
        return self._report(engine.status())[:-1] + b', "loops": ' + self._all_loops(engine) + b"}"

    def _report(self, report: StatusReport) -> bytes:
        newest = self._newest
        if newest is None or newest[0] is not report:
            newest = self._newest = (report, json.dumps(status_body(report), ensure_ascii=False).encode())
        return newest[1]

    def _all_loops(self, engine: Engine) -> bytes:
        loops, now = self._loops, time.monotonic()
        if loops is None or now - loops[0] >= _LOOPS_SECONDS:
            loops = self._loops = (now, json.dumps(loop_bodies(engine.checks().loops)).encode())
        return loops[1]


class Status:
    """Shows the engine's newest report."""

    def __init__(self, context: Context, rendered: _Rendered) -> None:
        self._context = context
        self._rendered = rendered

    @operation("getStatus", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The report, also when it is not a healthy one."""
        with self._context.running_engine(_no_status) as engine:
            resp.data = self._rendered.body(engine)


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
