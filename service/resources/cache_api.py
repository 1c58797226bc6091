"""What operators clear from the cache: all of it, or what they select."""

from __future__ import annotations

import logging
from typing import Any

import falcon

from engine import AwaitJob, ClearAll, EngineTimeoutError, JobReport, Selection, StartClear
from service.context import ANSWER_TIMEOUT, Context, Engine, JsonObject
from service.operations import operation
from service.resources.jobs_api import job_body

_EMPTY = {"objects": 0, "bytes": 0}

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

    @operation("clearCacheSelectively", 200, 202, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answers when it is done, or with the job after the time that the caller wants to wait."""
        body: JsonObject = req.context.get("body") or {}
        tier = body.get("tier", "all")
        if tier == "l2":
            resp.media = {"dry_run": body.get("dry_run", False), "tiers": {"l2": _EMPTY}}
            return
        with self._context.running() as engine:
            job = engine.ask(StartClear(_selection(body), body.get("dry_run", False)), ANSWER_TIMEOUT)
            job = _awaited(engine, job, body.get("wait", ANSWER_TIMEOUT))
        if job.state == "running":
            resp.status = falcon.HTTP_202
            resp.set_header("Location", f"/api/jobs/{job.id}")
            resp.media = job_body(job)
        else:
            if not job.dry_run:
                log.info("cleared %d objects of %d bytes", job.objects, job.bytes)
            resp.media = {"dry_run": job.dry_run, "tiers": _tiers(job, tier)}


class ClearTier:
    """The clear of LMCache 0.5, for its command line."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("clearTier", 200, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Clears a whole tier. `force` makes no difference: what is in use is made invisible, never pulled away."""
        body: JsonObject = req.context.get("body") or {}
        tier = body.get("tier", "l1")
        if tier != "l2":
            with self._context.running() as engine:
                cleared = engine.ask(ClearAll(), ANSWER_TIMEOUT)
            log.info("cleared %d objects of %d bytes", cleared.objects, cleared.bytes)
        resp.media = {"status": "ok", "cleared": {"tier": tier}}


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


def _tiers(job: JobReport, tier: str) -> JsonObject:
    tiers: JsonObject = {"l1": {"objects": job.objects, "bytes": job.bytes}}
    return tiers if tier == "l1" else {**tiers, "l2": _EMPTY}


def routes(context: Context) -> list[tuple[str, Any]]:
    """The clears."""
    return [
        ("/api/clear-cache", ClearAllCache(context)),
        ("/api/cache/clear", ClearCache(context)),
        ("/cache/clear", ClearTier(context)),
    ]
