"""The tiers of L2: what each does, and what operators do to one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import falcon

from engine import TierError
from service.context import ANSWER_TIMEOUT, Context, Engine, JsonObject, Tier
from service.operations import operation
from service.tier_view import stored_in, tier_body
from service.tiers import present_tiers

log = logging.getLogger("kvkeep.http")


class L2Tiers:
    """All tiers."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("listL2Tiers", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """In the order in which they are asked."""
        with self._context.running() as engine:
            resp.media = {"tiers": [tier_body(report) for report in present_tiers(engine)]}


class L2Tier:
    """One tier."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("getL2Tier", 200, 404, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """What it has and does now."""
        with self._context.running() as engine:
            reports = present_tiers(engine)
        found = next((report for report in reports if report.name == name), None)
        if found is None:
            names = ", ".join(report.name for report in reports) or "none"
            raise falcon.HTTPNotFound(description=f"there is no L2 tier {name!r}; there are: {names}")
        resp.media = tier_body(found)


class L2TierPause:
    """A tier of which nothing is asked."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("pauseL2Tier", 200, 404, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """From now on; what is under way ends."""
        resp.media = _switch(self._context, name, paused=True)


class L2TierResume:
    """A tier that is used again."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("resumeL2Tier", 200, 404, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """From now on."""
        resp.media = _switch(self._context, name, paused=False)


class L2TierClear:
    """A tier that is emptied."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("clearL2Tier", 202, 404, 409, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Begins to delete everything in it."""
        _begin(self._context, resp, name, "clear", lambda tier: tier.clear())


class L2TierRescan:
    """A tier that is counted."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("rescanL2Tier", 202, 404, 409, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Begins to count everything in it."""
        _begin(self._context, resp, name, "rescan", lambda tier: tier.rescan())


class L2TierScrub:
    """A tier that is checked."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("scrubL2Tier", 202, 404, 409, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Begins to check everything in it."""
        _begin(self._context, resp, name, "scrub", lambda tier: tier.scrub())


def _switch(context: Context, name: str, *, paused: bool) -> JsonObject:
    with context.running() as engine:
        _tier(engine, name)
        engine.pause_tier(name, paused, ANSWER_TIMEOUT)
    log.info("the L2 tier %s is %s", name, "paused" if paused else "in use")
    return {"tier": name, "is_paused": paused}


def _begin(context: Context, resp: falcon.Response, name: str, work: str, begin: Callable[[Tier], None]) -> None:
    with context.running() as engine:
        tier = _tier(engine, name)
        stored = stored_in([tier.report()])
        begin(tier)
    log.info("began the %s of the L2 tier %s", work, name)
    resp.status = falcon.HTTP_202
    resp.set_header("Location", f"/api/l2/{name}")
    resp.media = {"tier": name, "work": work, **stored}


def _tier(engine: Engine, name: str) -> Tier:
    """Raises 404, with the names that there are."""
    try:
        return engine.tier(name)
    except TierError as error:
        raise falcon.HTTPNotFound(description=str(error)) from error


def routes(context: Context) -> list[tuple[str, Any]]:
    """The tiers' routes."""
    return [
        ("/api/l2", L2Tiers(context)),
        ("/api/l2/{name}", L2Tier(context)),
        ("/api/l2/{name}/pause", L2TierPause(context)),
        ("/api/l2/{name}/resume", L2TierResume(context)),
        ("/api/l2/{name}/clear", L2TierClear(context)),
        ("/api/l2/{name}/rescan", L2TierRescan(context)),
        ("/api/l2/{name}/scrub", L2TierScrub(context)),
    ]
