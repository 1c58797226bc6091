"""The workers of inference engines, and what each holds."""

from __future__ import annotations

from typing import Any

import falcon

from engine import Held, ListWorkers, WorkerActivity
from service import paging
from service.context import ANSWER_TIMEOUT, Context, JsonObject
from service.operations import operation


class Workers:
    """Who is registered."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("listWorkers", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """A page of them, in the order of their instance ids."""
        first = paging.start(req)
        with self._context.running() as engine:
            page = engine.ask(ListWorkers(first, paging.limit(req)), ANSWER_TIMEOUT)
        resp.media = paging.page("workers", [_body(each) for each in page.workers], page.next_instance_id)


def _body(each: WorkerActivity) -> JsonObject:
    return {
        "instance_id": each.instance_id,
        "model": each.model_name,
        "world_size": each.world_size,
        "transfer_mode": each.transfer_mode,
        "state": each.state,
        "problem": each.problem,
        "age_seconds": each.age,
        "silent_seconds": each.silent_for,
        "has_pinged": each.has_pinged,
        "writing": _held(each.writing),
        "reading": _held(each.reading),
    }


def _held(held: Held) -> JsonObject:
    return {"objects": held.objects, "bytes": held.bytes}


def routes(context: Context) -> list[tuple[str, Any]]:
    """The workers' route."""
    return [("/api/workers", Workers(context))]
