"""What operators change of L1 while it runs: its size and its eviction policy. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from engine.commands import ChangePolicy, Command, Grow, Shrink, StopShrinking
from engine.errors import QuotaError
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

    def handlers(self) -> dict[type[Command[Any]], Callable[[CommandAsked, Any], list[Effect]]]:
        """By command, what carries it out."""
        return {
            Shrink: self._shrink,
            StopShrinking: self._stop_shrinking,
            Grow: self._grow,
            ChangePolicy: self._change_policy,
        }

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

    def _shrink(self, event: CommandAsked, command: Shrink) -> list[Effect]:
        reserved = sum(quota.reservation for quota in self._cache.quotas.values())
        if command.capacity < reserved:
            raise QuotaError(f"the quotas reserve {reserved} bytes: L1 cannot be made smaller than that")
        self._cache.set_capacity(command.capacity)
        return self._begun(event, self._jobs.start("shrink", event.now, self._cache.end, self._shrink_part))

    def _shrink_part(self, job: Job) -> Step:
        cache = self._cache
        if job.done < job.total:
            page = cache.evict_beyond(job.done, _PART)
            for entry in page.members:
                job.count(entry.size)
            job.done = job.total if page.next_place is None else min(page.next_place, job.total)
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

    def _stop_shrinking(self, event: CommandAsked, _: StopShrinking) -> list[Effect]:
        if self._discarding is not None:
            self._waiting.append(event.ticket)
            return []
        effects: list[Effect] = []
        job = self._jobs.running("shrink")
        if job is not None:
            self._cache.set_capacity(self._cache.tail[1])
            effects = self._jobs.end(job, event.now)
        return [*effects, CommandDone(event.ticket, self._cache.capacity)]

    def _grow(self, event: CommandAsked, command: Grow) -> list[Effect]:
        self._cache.set_capacity(command.capacity)
        return [CommandDone(event.ticket, None)]

    def _change_policy(self, event: CommandAsked, command: ChangePolicy) -> list[Effect]:
        self.policy_name = command.name
        self._cache.change_policy(command.make_policy)
        objects = self._cache.ready_objects
        return self._begun(event, self._jobs.start("change_policy", event.now, objects, self._policy_part))

    def _begun(self, event: CommandAsked, job: Job) -> list[Effect]:
        return [*self._jobs.proceed(event.now), CommandDone(event.ticket, job.report(event.now))]

    def _policy_part(self, job: Job) -> Step:
        ended = self._cache.hand_over(_PART)
        if ended:
            self._cache.end_move()
        job.done = job.total if ended else min(job.done + _PART, job.total)
        return "ended" if ended else "more"
