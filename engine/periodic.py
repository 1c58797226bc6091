"""What the engine thread does every second, job by job; a defect of one does not keep the others from it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.events import Effect, Failed

PeriodicJob = Callable[[float], list[Effect]]
"""Takes the time. Goes from one session, worker or object to the next, and leaves each whole."""


class Periodic:
    """The jobs, in order. Belongs to the engine thread."""

    def __init__(self, jobs: Mapping[str, PeriodicJob]) -> None:
        self._jobs = jobs

    def tick(self, now: float) -> list[Effect]:
        """Does all of them."""
        return [effect for name, job in self._jobs.items() for effect in attempt(name, job, now)]


def attempt(name: str, job: PeriodicJob, now: float) -> list[Effect]:
    """Does one; what it raises becomes an effect."""
    try:
        return job(now)
    except Exception as error:
        return [Failed(name, error)]
