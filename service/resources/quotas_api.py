"""Who may have how much of L1."""

from __future__ import annotations

import logging
from typing import Any

import falcon

from engine import DropQuota, ListQuotas, LookAtQuota, QuotaReport, SetQuota, TenantQuota
from service.context import ANSWER_TIMEOUT, Context, JsonObject
from service.operations import operation

log = logging.getLogger("kvkeep.http")


class Quotas:
    """All quotas."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("listQuotas", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The tenants with a quota of their own, and the rest in sum."""
        with self._context.running() as engine:
            found = engine.ask(ListQuotas(), ANSWER_TIMEOUT)
        resp.media = {
            "default_limit": found.default_limit,
            "tenants": [_body(each) for each in found.tenants],
            "others": {"tenants": found.others, "used": found.others_used},
        }


class Quota:
    """One tenant's."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("getQuota", 200, 404, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response, cache_salt: str) -> None:
        """What it may have, and what it has."""
        with self._context.running() as engine:
            found = engine.ask(LookAtQuota(cache_salt), ANSWER_TIMEOUT)
        if found.origin == "default":
            raise falcon.HTTPNotFound(description=f"{cache_salt} has no quota of its own; the default is in force")
        resp.media = _body(found)

    @operation("setQuota", 200, 409, 503)
    def on_put(self, req: falcon.Request, resp: falcon.Response, cache_salt: str) -> None:
        """In force at once; what is over the limit is evicted a part at a time."""
        body: JsonObject = req.context.body
        quota = TenantQuota(cache_salt, body.get("limit"), body.get("reservation", 0))
        with self._context.running() as engine:
            found = engine.ask(SetQuota(quota), ANSWER_TIMEOUT)
        log.info("quota of %r: limit %s, reservation %d", cache_salt, found.limit, found.reservation)
        resp.media = _body(found)

    @operation("deleteQuota", 200, 404, 409, 503)
    def on_delete(self, req: falcon.Request, resp: falcon.Response, cache_salt: str) -> None:
        """The configuration's quota is in force again, or the default."""
        with self._context.running() as engine:
            found = engine.ask(DropQuota(cache_salt), ANSWER_TIMEOUT)
        if found is None:
            raise falcon.HTTPNotFound(description=f"no quota was set for {cache_salt}")
        log.info("quota of %r is that of the configuration: limit %s", cache_salt, found.limit)
        resp.media = _body(found)


def _body(each: QuotaReport) -> JsonObject:
    return {
        "cache_salt": each.cache_salt,
        "limit": each.limit,
        "reservation": each.reservation,
        "used": each.used,
        "origin": each.origin,
    }


def routes(context: Context) -> list[tuple[str, Any]]:
    """The quotas' routes."""
    return [("/api/quotas", Quotas(context)), ("/api/quotas/{cache_salt}", Quota(context))]
