"""What operators clear from the cache: all of it, or what they select."""

from __future__ import annotations

import logging
from typing import Any, Final

import falcon

from engine import AwaitJob, ClearAll, EngineTimeoutError, JobReport, Selection, StartClear
from service.context import ANSWER_TIMEOUT, Context, Engine, JsonObject
from service.operations import operation
from service.resources.jobs_api import job_body
from service.tier_view import stored_in
from service.tiers import present_tiers

_ALL_OF_L2: Final = (
    "objects are stored in L2 under hashed names, so only all of a tier can be cleared; "
    "say `tier: l1` to clear the selection in L1"
)

log = logging.getLogger("kvkeep.http")


def _not_cleared(reason: str) -> JsonObject:
    return {"status": "error", "reason": reason}


class ClearAllCache:
    """Empties the cache without a reader ever seeing changed bytes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("clearCache", 200, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Makes everything in L1 invisible. Whatever the body says is not looked at."""
        with self._context.running_engine(_not_cleared) as engine:
            cleared = engine.ask(ClearAll(), ANSWER_TIMEOUT)
        log.info("cleared %d objects of %d bytes", cleared.objects, cleared.bytes)
        resp.media = {"status": "ok"}


class ClearCache:
    """Clears what is selected, a part at a time where that is not everything."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("clearCacheSelectively", 200, 202, 409, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answers when it is done, or with the job after the time that the caller wants to wait."""
        body: JsonObject = req.context.get("body") or {}
        tier, dry_run = body.get("tier", "all"), body.get("dry_run", False)
        tiers: JsonObject = {}
        with self._context.running() as engine:
            # NOTE: L2 first: what is only gone from L1 would come back with the next lookup.
            if tier != "l1":
                tiers["l2"] = _clear_l2(engine, _selection(body), dry_run=dry_run)
            if tier != "l2":
                job = engine.ask(StartClear(_selection(body), dry_run), ANSWER_TIMEOUT)
                job = _awaited(engine, job, body.get("wait", ANSWER_TIMEOUT))
                tiers["l1"] = {"objects": job.objects, "bytes": job.bytes}
        if tier != "l2" and job.state == "running":
            resp.status = falcon.HTTP_202
            resp.set_header("Location", f"/api/jobs/{job.id}")
            resp.media = job_body(job)
            return
        if not dry_run:
            _log(tiers)
        resp.media = {"dry_run": dry_run, "tiers": tiers}


class ClearTier:
    """The clear of LMCache 0.5, for its command line."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("clearTier", 200, 409, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Clears a whole tier. `force` makes no difference: what is in use is made invisible, never pulled away."""
        body: JsonObject = req.context.get("body") or {}
        tier = body.get("tier", "l1")
        tiers: JsonObject = {}
        with self._context.running() as engine:
            if tier != "l1":
                tiers["l2"] = _clear_l2(engine, Selection(), dry_run=False)
            if tier != "l2":
                cleared = engine.ask(ClearAll(), ANSWER_TIMEOUT)
                tiers["l1"] = {"objects": cleared.objects, "bytes": cleared.bytes}
        _log(tiers)
        resp.media = {"status": "ok", "cleared": {"tier": tier}}


def _log(tiers: JsonObject) -> None:
    for tier, cleared in tiers.items():
        log.info("cleared %s: %s objects of %s bytes", tier, cleared["objects"], cleared["bytes"])


def _clear_l2(engine: Engine, selection: Selection, *, dry_run: bool) -> JsonObject:
    """Begins to delete everything in L2; returns how much that is. Raises TierError, and 409 for a selection."""
    reports = present_tiers(engine)
    if reports and selection != Selection():
        raise falcon.HTTPConflict(description=_ALL_OF_L2)
    stored = stored_in(report.tier for report in reports)
    if reports and not dry_run:
        engine.clear_tiers()
    return stored


def _selection(body: JsonObject) -> Selection:
    return Selection(body.get("model"), body.get("cache_salt"), body.get("older_than"))


def _awaited(engine: Engine, job: JobReport, seconds: float) -> JobReport:
    """The job's report when it has ended, or after this time."""
    if job.state == "running" and seconds:
        try:
            return engine.ask(AwaitJob(job.id), seconds) or job
        except EngineTimeoutError:
            return job
    return job


def routes(context: Context) -> list[tuple[str, Any]]:
    """The clears."""
    return [
        ("/api/clear-cache", ClearAllCache(context)),
        ("/api/cache/clear", ClearCache(context)),
        ("/cache/clear", ClearTier(context)),
    ]
