"""Long work, and how far it is."""

from __future__ import annotations

from typing import Any

import falcon

from engine import JobReport, ListJobs
from service.context import ANSWER_TIMEOUT, Context, JsonObject
from service.operations import operation


class Jobs:
    """The jobs that run, and the last ones that ended."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("listJobs", 200, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """All that are remembered, the newest first."""
        with self._context.running() as engine:
            resp.media = {"jobs": [job_body(job) for job in engine.ask(ListJobs(), ANSWER_TIMEOUT)]}


class Job:
    """One job."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @operation("getJob", 200, 404, 503)
    def on_get(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        """How far it is, and what it has done so far."""
        with self._context.running() as engine:
            jobs = engine.ask(ListJobs(), ANSWER_TIMEOUT)
        found = next((job for job in jobs if job.id == int(job_id)), None)
        if found is None:
            raise falcon.HTTPNotFound(description=f"there is no job {job_id}; only the last ones that ended are kept")
        resp.media = job_body(found)


def job_body(job: JobReport) -> JsonObject:
    """A job as the API shows it."""
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "progress": job_progress(job),
        "dry_run": job.dry_run,
        "objects": job.objects,
        "bytes": job.bytes,
        "age_seconds": job.age,
    }


def job_progress(job: JobReport) -> float:
    """How far it is, 0 to 1. One that ended is through, also where less has come than it wanted."""
    if job.state == "done":
        return 1.0
    return job.done / job.total if job.total else 0.0


def routes(context: Context) -> list[tuple[str, Any]]:
    """The jobs' routes."""
    return [("/api/jobs", Jobs(context)), ("/api/jobs/{job_id}", Job(context))]
