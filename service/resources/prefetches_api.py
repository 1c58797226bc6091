"""Loading what L2 has of a prompt into L1 before anybody asks for it."""

from __future__ import annotations

import logging
from typing import Any

import falcon

from engine import FindJob, JobReport, Question
from service.context import ANSWER_TIMEOUT, Context, JsonObject
from service.operations import operation
from service.resources.jobs_api import job_progress

log = logging.getLogger("kvkeep.http")


class Prefetches:
    """What is asked for."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("startPrefetch", 202, 409, 503)
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Begins to load; answers with the job."""
        body: JsonObject = req.context.body
        question = Question(body["tokens"], body["model"], body.get("world_size"), body.get("cache_salt", ""))
        with self._context.running() as engine:
            job = engine.prefetch(question, ANSWER_TIMEOUT)
        log.info("began to load %d chunks from L2 as job %d", job.total - job.done, job.id)
        resp.status = falcon.HTTP_202
        resp.set_header("Location", f"/api/cache/prefetches/{job.id}")
        resp.media = _body(job)


class Prefetch:
    """One of them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("getPrefetch", 200, 404, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response, id: str) -> None:
        """How much has come."""
        with self._context.running() as engine:
            job = engine.ask(FindJob(int(id)), ANSWER_TIMEOUT)
        if job is None or job.kind != "prefetch":
            raise falcon.HTTPNotFound(description=f"there is no prefetch {id}; only the last jobs that ended are kept")
        resp.media = _body(job)


def _body(job: JobReport) -> JsonObject:
    return {
        "id": job.id,
        "state": job.state,
        "progress": job_progress(job),
        "chunks": job.done,
        "total_chunks": job.total,
        "objects": job.objects,
        "bytes": job.bytes,
        "age_seconds": job.age,
    }


def routes(context: Context) -> list[tuple[str, Any]]:
    """The prefetches' routes."""
    return [("/api/cache/prefetches", Prefetches(context)), ("/api/cache/prefetches/{id}", Prefetch(context))]
