"""Why a prompt hits or misses."""

from __future__ import annotations

from typing import Any, Final

import falcon

from engine import LookReport, Question, StatusReport
from service.context import ANSWER_TIMEOUT, Context, JsonObject
from service.operations import operation

FIND_TIMEOUT: Final = 2.0
"""Seconds that each tier of L2 has to say what is there; a tier that is slower counts as empty."""


class Lookups:
    """Questions to the cache that change nothing in it."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("explainLookup", 200, 409, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """What a lookup of these tokens would find now, and why not more."""
        body: JsonObject = req.context.body
        tokens: list[int] = body["tokens"]
        question = Question(tokens, body["model"], body.get("world_size"), body.get("cache_salt", ""))
        with self._context.running() as engine:
            status = engine.status()
            found = engine.look(question, ANSWER_TIMEOUT)
            further = engine.find_in_tiers(found.rest, FIND_TIMEOUT) if status.l2 and found.rest else 0
        resp.media = _body(found, further, len(tokens), status)


def _body(found: LookReport, further: int, tokens: int, status: StatusReport) -> JsonObject:
    """`further`: chunks behind those that L1 has which are there with the help of L2."""
    hits = found.hit_chunks + further
    from_l2 = sum(bool(keys) for keys in found.rest[:further])
    return {
        "tokens": tokens,
        "chunk_size": status.chunk_size,
        "chunks": tokens // status.chunk_size,
        "hit_chunks": hits,
        "hit_tokens": hits * status.chunk_size,
        "tiers": {"l1": hits - from_l2, "l2": from_l2},
        "first_miss": _first_miss(found, further, bool(status.l2)),
    }


def _first_miss(found: LookReport, further: int, has_l2: bool) -> JsonObject | None:
    if further == len(found.misses):
        return None
    miss = found.misses[further]
    was_asked_for = has_l2 and further < len(found.rest)
    detail = f"{miss.detail}; L2 does not have it" if was_asked_for else miss.detail
    return {"chunk": found.hit_chunks + further, "reason": miss.reason, "detail": detail}


def routes(context: Context) -> list[tuple[str, Any]]:
    """The lookups' route."""
    return [("/api/cache/lookups", Lookups(context))]
