"""Recordings of the live traffic, looked at and switched."""

from __future__ import annotations

import logging
from typing import Any

import falcon

from engine import RecordingReport
from service.context import Context, JsonObject
from service.operations import operation

log = logging.getLogger("kvkeep.http")


class Recording:
    """The recording under way, or the last one."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("getRecording", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Whether something is recorded, where, and how much."""
        with self._context.running() as engine:
            resp.media = _body(engine.recording())

    @operation("setRecording", 200, 409, 503)
    def on_put(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Begins a recording or ends it, until the next switch or a reload that changes the setting."""
        enabled: bool = req.context.body["enabled"]
        with self._context.running() as engine:
            engine.record(enabled)
            report = engine.recording()
        log.info("recording of the traffic switched %s", "on" if enabled else "off")
        resp.media = _body(report)


def _body(report: RecordingReport) -> JsonObject:
    return {
        "enabled": report.is_enabled,
        "folder": report.folder,
        "file": report.file,
        "lines": report.lines,
        "bytes": report.bytes,
        "dropped": report.dropped,
        "problem": report.problem,
    }


def routes(context: Context) -> list[tuple[str, Any]]:
    """The recording's route."""
    return [("/api/recording", Recording(context))]
