"""Why a prompt hits or misses."""

from __future__ import annotations

from typing import Any

import falcon

from engine import LookReport, Question
from service.context import ANSWER_TIMEOUT, Context, JsonObject
from service.operations import operation


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
            chunk_size = engine.status().chunk_size
            resp.media = _body(engine.look(question, ANSWER_TIMEOUT), len(tokens), chunk_size)


def _body(found: LookReport, tokens: int, chunk_size: int) -> JsonObject:
    miss = {"chunk": found.hit_chunks, "reason": found.reason, "detail": found.detail} if found.reason else None
    return {
        "tokens": tokens,
        "chunk_size": chunk_size,
        "chunks": tokens // chunk_size,
        "hit_chunks": found.hit_chunks,
        "hit_tokens": found.hit_chunks * chunk_size,
        "tiers": {"l1": found.hit_chunks, "l2": 0},
        "first_miss": miss,
    }


def routes(context: Context) -> list[tuple[str, Any]]:
    """The lookups' route."""
    return [("/api/cache/lookups", Lookups(context))]
