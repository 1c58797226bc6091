"""Requests whose lookups are remembered."""

from __future__ import annotations

from typing import Any

import falcon

from engine import ListSessions, SessionReport
from service import paging
from service.context import ANSWER_TIMEOUT, Context, JsonObject
from service.operations import operation


class Sessions:
    """Who was promised what."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("listSessions", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """A page of them."""
        begin = paging.seat(req)
        with self._context.running() as engine:
            page = engine.ask(ListSessions(begin, paging.limit(req)), ANSWER_TIMEOUT)
        resp.media = paging.page("sessions", [_body(each) for each in page.sessions], page.next_place)


def _body(each: SessionReport) -> JsonObject:
    return {
        "request_id": each.request_id,
        "client": each.client.hex(),
        "age_seconds": each.age,
        "hit_chunks": each.hit_chunks,
        "is_collected": each.is_collected,
        "leased_objects": each.leased_objects,
        "leased_bytes": each.leased_bytes,
    }


def routes(context: Context) -> list[tuple[str, Any]]:
    """The sessions' route."""
    return [("/api/sessions", Sessions(context))]
