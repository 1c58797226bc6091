"""Work on many objects, done a part at a time between requests, so that no request waits for it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Literal

from engine.answers import JobKind, JobReport
from engine.events import CommandDone, Continue, Effect

_REMEMBERED: Final = 100
"""Ended jobs whose reports are kept."""

Step = Literal["more", "wait", "ended"]
"""After a part: there is more to do; there is nothing to do before something else happens; all is done."""


@dataclass(slots=True)
class Job:
    """One job. Its `part` does a little of it, and notes how far it is."""

    id: int
    kind: JobKind
    started: float
    total: int
    part: Callable[[Job], Step]
    dry_run: bool = False
    done: int = 0
    objects: int = 0
    bytes: int = 0
    ended: bool = False
    waiting: list[int] = field(default_factory=list)
    """Tickets to be answered at the end."""
    effects: list[Effect] = field(default_factory=list)
    """What the last part wants done."""

    def count(self, size: int) -> None:
        """One more object of `size` bytes was affected."""
        self.objects += 1
        self.bytes += size

    def report(self, now: float) -> JobReport:
        state: Literal["running", "done"] = "done" if self.ended else "running"
        age = now - self.started
        return JobReport(self.id, self.kind, state, self.done, self.total, self.objects, self.bytes, self.dry_run, age)


class Jobs:
    """The jobs that run, and the last ones that ended. Belongs to the engine thread."""

    def __init__(self) -> None:
        self._ids = count(1)
        self._running: dict[int, Job] = {}
        self._ended: deque[Job] = deque(maxlen=_REMEMBERED)
        self._asked_to_continue = False

    def start(self, kind: JobKind, now: float, total: int, part: Callable[[Job], Step], **more: Any) -> Job:
        """A new job, of which nothing was done yet; `proceed` does it."""
        job = Job(next(self._ids), kind, now, total, part, **more)
        self._running[job.id] = job
        return job

    def running(self, kind: JobKind) -> Job | None:
        return next((job for job in self._running.values() if job.kind == kind), None)

    def find(self, job_id: int) -> Job | None:
        return next((job for job in self if job.id == job_id), None)

    def __iter__(self) -> Iterator[Job]:
        """The newest first."""
        yield from reversed(self._running.values())
        yield from reversed(self._ended)

    def proceed(self, now: float) -> list[Effect]:
        """Does a part of every running job; asks to be continued if there is more to do at once."""
        effects: list[Effect] = []
        more = False
        for job in list(self._running.values()):
            step = job.part(job)
            effects += job.effects
            job.effects = []
            more = more or step == "more"
            if step == "ended":
                effects += self.end(job, now)
        if more and not self._asked_to_continue:
            self._asked_to_continue = True
            effects.append(Continue())
        return effects

    def continued(self, now: float) -> list[Effect]:
        """What was asked for with `Continue` has come."""
        self._asked_to_continue = False
        return self.proceed(now)

    def end(self, job: Job, now: float) -> list[Effect]:
        """Answers those who wait for it."""
        job.ended = True
        del self._running[job.id]
        self._ended.append(job)
        return [CommandDone(ticket, job.report(now)) for ticket in job.waiting]
