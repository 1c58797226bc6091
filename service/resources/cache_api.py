"""What operators do to the cache."""

from __future__ import annotations

import logging
from typing import Any

import falcon

from service.context import Context, JsonObject
from service.operations import operation

# The engine thread answers a command between two batches of requests; far longer than that means it is stuck.
CLEAR_TIMEOUT = 10.0

log = logging.getLogger("kvkeep.http")


def _not_cleared(reason: str) -> JsonObject:
    return {"status": "error", "reason": reason}


class ClearCache:
    """Empties the cache without a reader ever seeing changed bytes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("clearCache", 200, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Makes everything in L1 invisible. Whatever the body says is not looked at."""
        with self._context.running_engine(_not_cleared) as engine:
            cleared = engine.clear(CLEAR_TIMEOUT)
        log.info("cleared %d objects of %d bytes", cleared.objects, cleared.bytes)
        resp.media = {"status": "ok"}


def routes(context: Context) -> list[tuple[str, Any]]:
    """The cache's operations."""
    return [("/api/clear-cache", ClearCache(context))]
