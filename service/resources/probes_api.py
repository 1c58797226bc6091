"""Probes for orchestrators: would a restart help, and should requests come here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon

from engine import MonitorReport
from service.context import Context
from service.errors import UnavailableError
from service.lifecycle import State
from service.operations import operation
from service.probes import Problems, details, live, ready

Rule = Callable[[State, MonitorReport], Problems]


class Probe:
    """Answers by one rule. All that it reads was published before, so asking costs next to nothing."""

    def __init__(self, context: Context, rule: Rule) -> None:
        self._lifecycle = context.lifecycle
        self._rule = rule

    def answer(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Raises UnavailableError with everything that fails."""
        state = self._lifecycle.state
        report = state.report()
        more = details(state, report) if req.params.get("verbose") in ("", "true") else {}
        problems = self._rule(state, report)
        if problems:
            raise UnavailableError("; ".join(problems), more)
        resp.media = {"status": "ok", **more}


class Live(Probe):
    """Would a restart help?"""

    @operation("getLivez", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """200 unless it would."""
        self.answer(req, resp)


class Ready(Probe):
    """Should requests come here?"""

    @operation("getReadyz", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """200 while they should."""
        self.answer(req, resp)


def routes(context: Context) -> list[tuple[str, Any]]:
    """Both probes."""
    return [("/api/livez", Live(context, live)), ("/api/readyz", Ready(context, ready))]
