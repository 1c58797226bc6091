"""What operators change of L1 while it runs: its size and its eviction policy. Pure."""

from __future__ import annotations

from typing import Final

from engine.commands import ChangePolicy, Grow, Shrink, StopShrinking
from engine.events import CommandAsked, CommandDone, Discard, Effect, Warn
from engine.jobs import Job, Jobs, Step
from engine.l1.cache import L1Cache

_PART: Final = 512
"""Objects that a job looks at before requests have their turn."""


class Tuning:
    """Belongs to the engine thread.

    A shrink takes three things in order: nothing new is put behind the new size; what is there is evicted, and what is
    in use there ends with its last user; then the memory is given back. Until that last one begins it can be stopped.
    """

    def __init__(self, cache: L1Cache, jobs: Jobs, policy_name: str) -> None:
        self.policy_name = policy_name
        self._cache = cache
        self._jobs = jobs
        self._discarding: Job | None = None
        self._transfers_ended = False
        self._waiting: list[int] = []
        """Tickets of `StopShrinking` that came while memory was being given back."""

    def answer(self, event: CommandAsked) -> list[Effect] | None:
        """What follows from a command; None if it is not one of those here."""
        command, now, ticket = event.command, event.now, event.ticket
        match command:
            case Shrink():
                job = self._shrink(now, command.capacity)
                return [*self._jobs.proceed(now), CommandDone(ticket, job.report(now))]
            case StopShrinking():
                return self._stop_shrinking(now, ticket)
            case Grow():
                self._cache.set_capacity(command.capacity)
                return [CommandDone(ticket, None)]
            case ChangePolicy():
                job = self._change_policy(now, command)
                return [*self._jobs.proceed(now), CommandDone(ticket, job.report(now))]
        return None

    def discarded(self, now: float, problem: str | None) -> list[Effect]:
        """The memory behind L1 was given back, or could not be."""
        job, self._discarding = self._discarding, None
        effects: list[Effect] = [Warn(f"L1's memory could not be given back: {problem}")] if problem else []
        if job is not None:
            effects += self._jobs.end(job, now)
        effects += [CommandDone(ticket, self._cache.capacity) for ticket in self._waiting]
        self._waiting = []
        return effects

    def transfers_ended(self, now: float, problem: str) -> list[Effect]:
        """The transfer thread is gone: no memory will be given back any more."""
        self._transfers_ended = True
        return self.discarded(now, problem) if self._discarding is not None else []

    def _shrink(self, now: float, capacity: int) -> Job:
        self._cache.set_capacity(capacity)
        return self._jobs.start("shrink", now, self._cache.seats, self._shrink_part)

    def _shrink_part(self, job: Job) -> Step:
        cache = self._cache
        if job.done < job.total:
            evicted = cache.evict_beyond(job.done, _PART)
            for entry in evicted:
                job.count(entry.size)
            job.done = min(job.done + _PART, job.total)
            return "more"
        if self._discarding is job or not cache.tail_is_free:
            return "wait"
        tail = cache.tail
        cache.cut_tail()
        if self._transfers_ended:
            return "ended"
        self._discarding = job
        job.effects.append(Discard(*tail))
        return "wait"

    def _stop_shrinking(self, now: float, ticket: int) -> list[Effect]:
        if self._discarding is not None:
            self._waiting.append(ticket)
            return []
        effects: list[Effect] = []
        job = self._jobs.running("shrink")
        if job is not None:
            self._cache.set_capacity(self._cache.tail[1])
            effects = self._jobs.end(job, now)
        return [*effects, CommandDone(ticket, self._cache.capacity)]

    def _change_policy(self, now: float, command: ChangePolicy) -> Job:
        self.policy_name = command.name
        self._cache.change_policy(command.policy)
        return self._jobs.start("change_policy", now, self._cache.ready_objects, self._policy_part)

    def _policy_part(self, job: Job) -> Step:
        ended = self._cache.hand_over(_PART)
        job.done = job.total if ended else min(job.done + _PART, job.total)
        return "ended" if ended else "more"
