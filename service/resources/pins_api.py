"""Prefixes that stay in L1."""

from __future__ import annotations

import logging
from typing import Any

import falcon

from engine import DropPins, ListPins, PinReport, Question
from service.context import ANSWER_TIMEOUT, Context, JsonObject
from service.operations import operation

log = logging.getLogger("kvkeep.http")


class Pins:
    """What is pinned."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("listPins", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """All pins, the oldest first."""
        with self._context.running() as engine:
            found = engine.ask(ListPins(), ANSWER_TIMEOUT)
        resp.media = {"budget": found.budget, "bytes": found.bytes, "pins": [_body(each) for each in found.pins]}

    @operation("setPin", 200, 409, 503)
    def on_put(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Holds what is there of a prompt, and what comes; again, it renews the time."""
        body: JsonObject = req.context.body
        question = Question(body["tokens"], body["model"], body.get("world_size"), body.get("cache_salt", ""))
        with self._context.running() as engine:
            pin = engine.pin(question, body["ttl_seconds"], ANSWER_TIMEOUT)
        log.info("pinned %d chunks as %s for %g s", pin.chunks, pin.id, pin.expires_in)
        resp.media = _body(pin)

    @operation("deletePins", 200, 503)
    def on_delete(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Their chunks are evicted like others again."""
        with self._context.running() as engine:
            found = engine.ask(DropPins(tuple(req.context.body["ids"])), ANSWER_TIMEOUT)
        log.info("removed %d pins of %d bytes", found.pins, found.bytes)
        resp.media = {"pins": found.pins, "bytes": found.bytes, "missing": found.missing}


def _body(pin: PinReport) -> JsonObject:
    return {
        "id": pin.id,
        "model": pin.model_name,
        "cache_salt": pin.cache_salt,
        "chunks": pin.chunks,
        "objects": pin.objects,
        "bytes": pin.bytes,
        "expires_in_seconds": pin.expires_in,
    }


def routes(context: Context) -> list[tuple[str, Any]]:
    """The pins' route."""
    return [("/api/cache/pins", Pins(context))]
