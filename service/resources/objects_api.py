"""Single objects of the cache: listed, and deleted by their keys."""

from __future__ import annotations

import logging
from typing import Any

import falcon

from engine import DeleteObjects, ListObjects, ObjectPage, ObjectReport, Selection
from service import paging
from service.context import ANSWER_TIMEOUT, Context, Engine, JsonObject
from service.operations import operation

log = logging.getLogger("kvkeep.http")


class Objects:
    """The objects of L1; L2 has names only, which are hashes. Deletions concern every tier."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("listObjects", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """A page of what agrees with the query."""
        begin = paging.seat(req)
        selection = Selection(req.get_param("model"), req.get_param("cache_salt"))
        with self._context.running() as engine:
            page = ObjectPage((), None)
            if req.get_param("tier") != "l2":
                page = engine.ask(ListObjects(begin, paging.limit(req), selection), ANSWER_TIMEOUT)
        resp.media = paging.page("objects", [_body(each) for each in page.objects], page.next_place)

    @operation("deleteObjects", 200, 409, 503)
    def on_delete(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Makes them invisible; those in use end with their last user."""
        keys = tuple(bytes.fromhex(key) for key in req.context.body["keys"])
        with self._context.running() as engine:
            # NOTE: L2 first: what is only gone from L1 would come back with the next lookup.
            in_l2 = _delete_in_l2(engine, keys)
            deleted = engine.ask(DeleteObjects(keys), ANSWER_TIMEOUT)
        cleared = deleted.cleared
        log.info("deleted %d objects of %d bytes in L1, %d in L2", cleared.objects, cleared.bytes, in_l2["objects"])
        tiers = {"l1": {"objects": cleared.objects, "bytes": cleared.bytes}, "l2": in_l2}
        resp.media = {"tiers": tiers, "missing": deleted.missing}


def _delete_in_l2(engine: Engine, keys: tuple[bytes, ...]) -> JsonObject:
    """Storages do not tell the sizes of what they delete. Raises TierError."""
    if not engine.status().l2:
        return {"objects": 0, "bytes": 0}
    return {"objects": engine.delete_in_tiers(keys, ANSWER_TIMEOUT), "bytes": None}


def _body(each: ObjectReport) -> JsonObject:
    return {
        "key": each.key.hex(),
        "tier": "l1",
        "model": each.model_name,
        "cache_salt": each.cache_salt,
        "world_size": each.world_size,
        "shard": each.shard,
        "layout": each.fingerprint.hex(),
        "bytes": each.size,
        "state": "ready" if each.is_ready else "being_written",
        "leases": each.leases,
        "age_seconds": each.age,
    }


def routes(context: Context) -> list[tuple[str, Any]]:
    """The objects' route."""
    return [("/api/cache/objects", Objects(context))]
