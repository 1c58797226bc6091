"""Which lines the log has, looked at and changed while the process runs."""

from __future__ import annotations

from typing import Any

import falcon

from service.context import Context
from service.logs import ROOT
from service.operations import operation


class LogLevel:
    """The levels of the loggers."""

    def __init__(self, context: Context) -> None:
        self._logs = context.logs

    @operation("getLogLevel", 200)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The level of all, and of those that differ."""
        resp.media = {"level": self._logs.level, "loggers": self._logs.own_levels}

    @operation("setLogLevel", 200)
    def on_put(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Changes one level until the next change or the end of the process."""
        level, logger = req.context.body["level"], req.context.body.get("logger", ROOT)
        old = self._logs.change(level, logger)
        resp.media = {"logger": logger, "old_level": old, "level": level}


def routes(context: Context) -> list[tuple[str, Any]]:
    """The log level's route."""
    return [("/api/loglevel", LogLevel(context))]
