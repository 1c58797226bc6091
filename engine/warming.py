"""Loading what L2 has of a prompt into L1 before anybody looks it up. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.commands import Command, StartPrefetch
from engine.errors import PrefetchError
from engine.events import CommandAsked, CommandDone, Effect
from engine.jobs import Job, Jobs, Step
from engine.l1.cache import L1Cache
from engine.lookups import longest_prefix, prefixes, wanted_rows
from engine.operators import CommandHandler
from engine.prefetches import Prefetch, Prefetches
from engine.workers import Workers


class Warming:
    """Carries out `StartPrefetch`. Belongs to the engine thread.

    The job counts chunks: those that L1 had, and those that have come, in prefix order. It ends when nothing more
    comes, however long that takes; until then what has come stays.
    """

    def __init__(self, cache: L1Cache, workers: Workers, prefetches: Prefetches, jobs: Jobs) -> None:
        self._cache = cache
        self._workers = workers
        self._prefetches = prefetches
        self._jobs = jobs

    def handlers(self) -> dict[type[Command[Any]], CommandHandler]:
        """By command, what carries it out; raises AmbiguousError and PrefetchError."""
        return {StartPrefetch: self._start}

    def proceed(self, now: float) -> list[Effect]:
        """Something has come: the jobs note how far they are."""
        return self._jobs.proceed(now) if self._jobs.running("prefetch") else []

    def _start(self, event: CommandAsked, command: StartPrefetch) -> list[Effect]:
        pair = (command.model_name, command.world_size or self._workers.only_world_size(command.model_name))
        fingerprints = self._workers.fingerprints(pair)
        if not self._prefetches.is_of_use:
            raise PrefetchError("there is no L2 tier to load from: configure one under l2, or resume it")
        if not fingerprints:
            raise PrefetchError(f"no worker of {pair[0]!r} is ready, so it is not known what to load")
        if not command.hashes:
            raise PrefetchError("there is no complete chunk to load")
        prefix = longest_prefix(self._cache, prefixes(pair, command.cache_salt, fingerprints), command.hashes)
        there = len(prefix.entries) // (len(fingerprints) * pair[1])
        rows = wanted_rows(self._workers, pair, command.cache_salt, command.hashes[there:])
        prefetch = Prefetch(rows, 1, 0, event.now, [entry.key for entry in reversed(prefix.entries)])
        effects = self._prefetches.begin(event.now, prefetch)
        job = self._jobs.start("prefetch", event.now, len(command.hashes), self._part(prefetch, there))
        return [*effects, *self._jobs.proceed(event.now), CommandDone(event.ticket, job.report(event.now))]

    def _part(self, prefetch: Prefetch, there: int) -> Callable[[Job], Step]:
        def part(job: Job) -> Step:
            job.done = there + prefetch.complete
            arrived = prefetch.arrived.values()
            job.objects, job.bytes = len(arrived), sum(entry.size for entry in arrived)
            if prefetch.complete < prefetch.end:
                return "wait"
            self._prefetches.detach(prefetch)
            return "ended"

        return part
