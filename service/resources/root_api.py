"""The root: a process is there, and it is this service."""

from __future__ import annotations

from typing import Any

import falcon

from service.context import Context
from service.operations import operation


class Root:
    """Answers from the first second on, with or without an engine."""

    @operation("getRoot", 200)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Says which service this is."""
        resp.media = {"status": "ok", "service": "LMCache HTTP API"}


def routes(context: Context) -> list[tuple[str, Any]]:
    """The root's route."""
    return [("/", Root())]
