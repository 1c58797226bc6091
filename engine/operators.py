"""What operators see of the cache and do to it, apart from the status. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from engine.answers import (
    Deleted,
    Held,
    LookReport,
    Miss,
    ObjectPage,
    ObjectReport,
    SessionPage,
    SessionReport,
    WorkerActivity,
    WorkerPage,
)
from engine.awake import Awake
from engine.commands import (
    AwaitJob,
    ClearAll,
    Command,
    DeleteObjects,
    FindJob,
    ListJobs,
    ListObjects,
    ListSessions,
    ListWorkers,
    Look,
    Selection,
    StartClear,
)
from engine.copies import Copies
from engine.events import CommandAsked, CommandDone, Effect
from engine.jobs import Job, Jobs, Step
from engine.l1.cache import L1Cache
from engine.l1.entry import Entry
from engine.lookups import longest_prefix, prefixes
from engine.prompts import Prompts
from engine.sessions import Session, Sessions
from engine.status import Cleared, MissReason
from engine.workers import Worker, Workers

_PART: Final = 512
"""Objects that a job or a page looks at before requests have their turn: well under a millisecond."""

_DETAIL: Final[dict[MissReason, str]] = {
    "never_stored": "no worker has stored this chunk since the server was started",
    "evicted": "it was evicted to make room for others",
    "expired": "its worker did not finish writing it in time",
    "cleared": "it was cleared",
    "quarantined": "its bytes were found damaged, and it was put aside",
    "being_written": "a worker is writing it",
    "refused": "no room could be made for it when it was to be stored: too much was in use",
    "not_remembered": "it was stored once; what became of it is too long ago",
}


CommandHandler = Callable[[CommandAsked, Any], list[Effect]]


class Operators:
    """Carries out commands. Belongs to the engine thread."""

    def __init__(
        self,
        cache: L1Cache,
        sessions: Sessions,
        workers: Workers,
        copies: Copies,
        prompts: Prompts,
        jobs: Jobs,
        awake: Awake,
    ) -> None:
        self._cache = cache
        self._sessions = sessions
        self._workers = workers
        self._copies = copies
        self._chunk_size = prompts.chunk_size
        self._jobs = jobs
        self._awake = awake

    def handlers(self) -> dict[type[Command[Any]], CommandHandler]:
        """By command, what carries it out; `Look` raises AmbiguousError."""
        return {
            AwaitJob: self._await,
            FindJob: _answered(lambda now, command: (job := self._jobs.find(command.job_id)) and job.report(now)),
            StartClear: self._start_clear,
            ClearAll: _answered(lambda now, _: self._cache.clear()),
            DeleteObjects: _answered(lambda now, command: self._delete(command.keys)),
            ListJobs: _answered(lambda now, _: tuple(job.report(now) for job in self._jobs)),
            ListObjects: _answered(self._objects),
            ListSessions: _answered(lambda now, command: self._session_page(command)),
            ListWorkers: _answered(lambda now, command: self._worker_page(command)),
            Look: _answered(lambda now, command: self._look(command)),
        }

    def _await(self, event: CommandAsked, command: AwaitJob) -> list[Effect]:
        job = self._jobs.find(command.job_id)
        if job is not None and not job.ended:
            job.waiting.append(event.ticket)
            return []
        return [CommandDone(event.ticket, job and job.report(event.now))]

    def _start_clear(self, event: CommandAsked, command: StartClear) -> list[Effect]:
        now = event.now
        if command.selection == Selection():
            job = self._clear_all(now, dry_run=command.dry_run)
        else:
            part = _clear_part(self._cache, command.selection, now, dry_run=command.dry_run)
            job = self._jobs.start("clear", now, self._cache.end, part, dry_run=command.dry_run)
        return [*self._jobs.proceed(now), CommandDone(event.ticket, job.report(now))]

    def _clear_all(self, now: float, *, dry_run: bool) -> Job:
        cache = self._cache
        cleared = Cleared(cache.ready_objects, cache.ready_bytes) if dry_run else cache.clear()
        counted = {"objects": cleared.objects, "bytes": cleared.bytes}
        return self._jobs.start("clear", now, 0, lambda job: "ended", dry_run=dry_run, **counted)

    def _delete(self, keys: tuple[bytes, ...]) -> Deleted:
        objects = size = missing = 0
        for key in keys:
            entry = self._cache.entry(key)
            if entry is None:
                missing += 1
            else:
                self._cache.doom(entry, "cleared")
                objects, size = objects + 1, size + entry.size
        return Deleted(Cleared(objects, size), missing)

    def _objects(self, now: float, command: ListObjects) -> ObjectPage:
        """Stops at the limit, and after `_PART` objects however few it has found."""
        page = self._cache.page(command.seat, _PART)
        agreeing = [entry for entry in page.members if _agrees(entry, command.selection, now)]
        chosen, rest = agreeing[: command.limit], agreeing[command.limit :]
        return ObjectPage(tuple(_object(entry, now) for entry in chosen), rest[0].offset if rest else page.next_place)

    def _look(self, command: Look) -> LookReport:
        world_size = command.world_size or self._workers.only_world_size(command.model_name)
        pair = (command.model_name, world_size)
        fingerprints = self._workers.fingerprints(pair)
        if not fingerprints:
            where = f"no worker of {command.model_name!r} is ready, so no lookup of it can hit"
            unknown = Miss("layout_unknown", f"{where}; GET /api/workers tells why")
            return LookReport(0, unknown.reason, unknown.detail, misses=(unknown,))
        spaces = prefixes(pair, command.cache_salt, fingerprints)
        prefix = longest_prefix(self._cache, spaces, command.hashes)
        hits = len(prefix.entries) // len(spaces)
        further = [[space + hash_ for space in spaces] for hash_ in command.hashes[hits:]]
        # What stands behind a gap in L1 is there all the same once L2 has filled that.
        rest = [tuple(key for key in row if self._cache.find(key) is None) for row in further]
        misses = [self._miss(hits + index, rest[index] or row) for index, row in enumerate(further)]
        if command.spare_tokens:
            few = f"{command.spare_tokens} of {self._chunk_size} tokens; only complete chunks are cached"
            misses.append(Miss("chunk_incomplete", f"chunk {hits + len(rest)}: {few}"))
        reason, detail = misses[0] if misses else (None, "")
        return LookReport(hits, reason, detail, tuple(rest), tuple(misses))

    def _miss(self, chunk: int, keys: Sequence[bytes]) -> Miss:
        reason = self._cache.miss_reason(keys[0])
        return Miss(reason, f"chunk {chunk}: {_DETAIL[reason]}")

    def _session_page(self, command: ListSessions) -> SessionPage:
        page = self._sessions.page(command.seat, command.limit)
        return SessionPage(tuple(_session(each, self._awake.now) for each in page.members), page.next_place)

    def _worker_page(self, command: ListWorkers) -> WorkerPage:
        behind = sorted((each for each in self._workers if _is_behind(each, command.first)), key=_by_id)
        page, rest = behind[: command.limit], behind[command.limit :]
        return WorkerPage(tuple(self._worker(each) for each in page), rest[0].instance_id if rest else None)

    def _worker(self, worker: Worker) -> WorkerActivity:
        now = self._awake.now
        writing, reading = self._copies.entries_of(worker.instance_id)
        for reservation in worker.reservations.values():
            writing += reservation.entries
        for pins in worker.pins.values():
            for pin in pins:
                reading += pin.entries
        return WorkerActivity(
            instance_id=worker.instance_id,
            model_name=worker.model_name,
            world_size=worker.world_size,
            transfer_mode=worker.mode,
            state=worker.state,
            problem=worker.problem,
            age=now - worker.registered,
            silent_for=now - worker.last_seen,
            has_pinged=worker.pinged,
            writing=_held(writing),
            reading=_held(reading),
        )


def _answered(found: Callable[[float, Any], Any]) -> CommandHandler:
    """A handler that answers at once with what is found, given the time and the command."""
    return lambda event, command: [CommandDone(event.ticket, found(event.now, command))]


def _clear_part(cache: L1Cache, selection: Selection, now: float, *, dry_run: bool) -> Callable[[Job], Step]:
    """Clears what agrees, of all that was reserved before now, in the order of the places."""
    spared = cache.next_epoch()

    def part(job: Job) -> Step:
        page = cache.page(job.done, _PART)
        for entry in page.members:
            if entry.epoch < spared and _agrees(entry, selection, now):
                if entry.ready:
                    job.count(entry.size)
                if not dry_run:
                    cache.doom(entry, "cleared")
        job.done = job.total if page.next_place is None else min(page.next_place, job.total)
        return "ended" if job.done == job.total else "more"

    return part


def _agrees(entry: Entry, selection: Selection, now: float) -> bool:
    namespace = entry.namespace
    return (
        (selection.model_name is None or selection.model_name == namespace.model_name)
        and (selection.cache_salt is None or selection.cache_salt == namespace.cache_salt)
        and (selection.older_than is None or now - entry.since > selection.older_than)
    )


def _is_behind(worker: Worker, first: int | None) -> bool:
    return first is None or worker.instance_id >= first


def _by_id(worker: Worker) -> int:
    return worker.instance_id


def _held(entries: list[Entry]) -> Held:
    return Held(len(entries), sum(entry.size for entry in entries))


def _object(entry: Entry, now: float) -> ObjectReport:
    namespace = entry.namespace
    return ObjectReport(
        key=entry.key,
        model_name=namespace.model_name,
        world_size=namespace.world_size,
        shard=namespace.shard,
        fingerprint=namespace.fingerprint,
        cache_salt=namespace.cache_salt,
        size=entry.size,
        is_ready=entry.ready,
        leases=entry.leases,
        age=now - entry.since,
    )


def _session(session: Session, now: float) -> SessionReport:
    return SessionReport(
        request_id=session.request_id,
        client=session.client,
        age=now - session.opened,
        hit_chunks=session.hits,
        is_collected=session.collected,
        leased_objects=len(session.leases),
        leased_bytes=session.leased_bytes,
    )
