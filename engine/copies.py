"""Stores and retrieves that the server copies: `store`, `retrieve`, and what follows when a copy has ended. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from engine.events import Copy, CopyEnded, Effect, Piece, Reply, ReplyTo, RequestArrived
from engine.integrity import Integrity
from engine.l1.cache import L1Cache
from engine.l1.entry import Entry
from engine.layouts import KVLayout
from engine.meters import Meters, TransferMeter
from engine.prompts import Chunks, Prompts, RefusedError
from engine.saves import Saves
from engine.sessions import Sessions
from engine.slots import reserve_missing, take_readable
from engine.traffic import Traffic
from engine.transfer.plan import NULL_BLOCK
from engine.wire.messages import Retrieve, Store, TransferReply
from engine.workers import Worker, Workers

_MOST_COPIES = 1024
"""Of one worker at the same time."""


@dataclass(slots=True)
class _Job:
    """A copy that the transfer thread was asked for. A retrieve holds one lease on each of its entries."""

    to: ReplyTo
    instance_id: int
    is_store: bool
    entries: list[Entry]
    suffix_first: list[bytes]
    not_after: float
    """Until then the client waits for sure; later its blocks may have a new owner."""
    received: float
    size: int
    """Bytes of its objects."""
    meter: TransferMeter


class Copies:
    """The worker's side of the protocol where the server copies. Belongs to the engine thread."""

    def __init__(
        self,
        cache: L1Cache,
        sessions: Sessions,
        workers: Workers,
        prompts: Prompts,
        meters: Meters,
        traffic: Traffic,
        max_age: float,
        saves: Saves,
        integrity: Integrity,
    ) -> None:
        self._cache = cache
        self._integrity = integrity
        self._saves = saves
        self._sessions = sessions
        self._workers = workers
        self._prompts = prompts
        self._meters = meters
        self._traffic = traffic
        self._max_age = max_age
        self.skipped_stores = 0
        self._jobs: dict[int, _Job] = {}
        self._of_worker: Counter[int] = Counter()
        """Running copies by instance id; none that are 0."""
        self._last_job = 0

    @property
    def running(self) -> int:
        return len(self._jobs)

    def store(self, event: RequestArrived, message: Store) -> list[Effect]:
        """Copies what is absent; skips what is present, null, or finds no room. Raises RefusedError."""
        worker = self._worker(message.instance_id)
        if worker.state == "unsupported":
            return self.skip_store(event, message)
        layout = _ready_layout(worker)
        chunks = self._prompts.chunks(message.key, worker)
        _check_blocks(message.block_ids, layout, chunks.count)
        skip = _null_chunks(message.block_ids, layout, chunks.count)
        size = self._workers.chunk_bytes(worker.pair)
        self._traffic.stored(message.key.request_id, chunks, size, self._cache.counters.clears)
        reserved = reserve_missing(self._cache, chunks, layout.object_bytes, event.now, skip)
        if not reserved:
            self._meters.server_stores.answer(event.now - event.received, done=True)
            return [Reply(event.to, TransferReply.DONE)]
        return [self._begin(event, message, worker, chunks, reserved)]

    def skip_store(self, event: RequestArrived, _: Store) -> list[Effect]:
        """Answers as done and stores nothing: the worker has lost nothing by it."""
        self.skipped_stores += 1
        return [Reply(event.to, TransferReply.DONE)]

    def retrieve(self, event: RequestArrived, message: Retrieve) -> list[Effect]:
        """Copies every chunk of the range or none. Uses up this request's leases in any case; raises RefusedError."""
        worker = self._worker(message.instance_id)
        chunks = self._prompts.chunks(message.key, worker)
        entries = take_readable(self._cache, self._sessions, message.key.request_id, chunks)
        try:
            layout = _ready_layout(worker)
            _check_blocks(message.block_ids, layout, chunks.count)
            if message.skip_first_n_tokens < 0:
                raise RefusedError(f"skip_first_n_tokens is {message.skip_first_n_tokens}")
            if event.now > self._not_after(event):
                raise RefusedError("the retrieve has waited too long: its blocks may have a new owner")
        except RefusedError:
            self._release(entries, chunks.suffix_first)
            raise
        return [self._begin(event, message, worker, chunks, list(enumerate(entries)))]

    def entries_of(self, instance_id: int) -> tuple[list[Entry], list[Entry]]:
        """The objects that are being copied from this worker's blocks, and those to them."""
        mine = [job for job in self._jobs.values() if job.instance_id == instance_id]
        stored = [entry for job in mine if job.is_store for entry in job.entries]
        return stored, [entry for job in mine if not job.is_store for entry in job.entries]

    def is_copying(self, instance_id: int) -> bool:
        """True while a copy from or to this worker's blocks is under way."""
        return instance_id in self._of_worker

    def ended(self, event: CopyEnded) -> list[Effect]:
        """Publishes what was stored, or releases what was read, and answers."""
        now, problem = event.now, event.problem
        job = self._jobs.pop(event.job_id)
        self._of_worker[job.instance_id] -= 1
        if not self._of_worker[job.instance_id]:
            del self._of_worker[job.instance_id]
        if job.is_store and now > job.not_after:
            problem = problem or "the store took too long: its blocks may have had a new owner while they were read"
        effects: list[Effect] = []
        if not job.is_store:
            effects = self._verified(job, event)
            self._release(job.entries, job.suffix_first)
        elif problem is None:
            self._integrity.keep(job.entries, event.checksums)
            for entry in reversed(job.entries):
                self._cache.commit(entry)
            self._cache.touch(job.suffix_first)
            effects = self._saves.stored(job.entries)
        else:
            for entry in job.entries:
                self._cache.abort(entry)
        job.meter.end(now - job.received, len(job.entries), job.size, done=problem is None)
        return [Reply(job.to, TransferReply.FAILED if problem else TransferReply.DONE), *effects]

    def fail_all(self, now: float, problem: str) -> list[Effect]:
        """The transfer thread is gone: nothing will end by itself, and nothing is being written any more."""
        return [effect for job_id in list(self._jobs) for effect in self.ended(CopyEnded(now, job_id, problem))]

    def _verified(self, job: _Job, event: CopyEnded) -> list[Effect]:
        """Counts what a retrieve has held against its checksum; what is corrupt cannot be found any more."""
        if event.problem is None or event.corrupt is not None:
            self._integrity.verified(len(self._integrity.summed_up(job.entries[: event.corrupt])))
        return [] if event.corrupt is None else self._integrity.corrupt(job.entries[event.corrupt])

    def _worker(self, instance_id: int) -> Worker:
        worker = self._workers.get(instance_id)
        if worker is None:
            raise RefusedError(f"worker {instance_id} is not registered")
        if worker.mode != "lmcache_driven":
            raise RefusedError(f"worker {instance_id} copies by itself: it is registered as {worker.mode}")
        if self._of_worker[instance_id] >= _MOST_COPIES:
            raise RefusedError(f"{_MOST_COPIES} copies of worker {instance_id} have not ended")
        return worker

    def _not_after(self, event: RequestArrived) -> float:
        return event.received + self._max_age

    def _begin(
        self,
        event: RequestArrived,
        message: Store | Retrieve,
        worker: Worker,
        chunks: Chunks,
        slots: list[tuple[int, Entry]],
    ) -> Copy:
        """Remembers a job and asks for its copy. `slots`: index in the range, and the object's entry."""
        assert worker.mapping_id is not None  # _ready_layout
        assert worker.layout is not None
        is_store, not_after = isinstance(message, Store), self._not_after(event)
        entries = [entry for _, entry in slots]
        self._last_job += 1
        meter = self._meters.server_stores if is_store else self._meters.server_retrieves
        meter.begin()
        self._of_worker[worker.instance_id] += 1
        self._jobs[self._last_job] = _Job(
            event.to,
            worker.instance_id,
            is_store,
            entries,
            chunks.suffix_first,
            not_after,
            event.received,
            len(entries) * worker.layout.object_bytes,
            meter,
        )
        return Copy(
            self._last_job,
            worker.mapping_id,
            "store" if is_store else "retrieve",
            message.block_ids,
            tuple(Piece(index, entry.offset, None if is_store else entry.checksum) for index, entry in slots),
            skip_tokens=0 if isinstance(message, Store) else message.skip_first_n_tokens,
            event_handle=message.event_handle,
            not_after=not_after,
            slot_bytes=entries[0].size if self._integrity.enabled and entries else 0,
        )

    def _release(self, entries: list[Entry], suffix_first: list[bytes]) -> None:
        for entry in reversed(entries):
            self._cache.release(entry)
        self._cache.touch(suffix_first)


def _ready_layout(worker: Worker) -> KVLayout:
    if worker.state != "ready" or not isinstance(worker.layout, KVLayout):
        raise RefusedError(f"worker {worker.instance_id} is {worker.state}: {worker.problem}")
    return worker.layout


def _check_blocks(block_ids: list[list[int]], layout: KVLayout, chunks: int) -> None:
    """Every id must name a block: nothing outside the registered tensors may be read or written."""
    if len(block_ids) != len(layout.groups):
        raise RefusedError(f"{len(block_ids)} lists of block ids for {len(layout.groups)} groups")
    for ids, group in zip(block_ids, layout.groups, strict=True):
        if len(ids) != chunks * group.blocks_per_chunk:
            raise RefusedError(f"{len(ids)} block ids for {chunks} chunks of {group.blocks_per_chunk} blocks")
        if ids and not 0 <= min(ids) <= max(ids) < group.num_blocks:
            raise RefusedError(f"block ids {min(ids)}..{max(ids)} of {group.num_blocks} blocks")


def _null_chunks(block_ids: list[list[int]], layout: KVLayout, chunks: int) -> set[int]:
    """Chunks of which some group has no content: stored, they would be served as a prefix that nobody computed."""
    null = set()
    for ids, group in zip(block_ids, layout.groups, strict=True):
        if NULL_BLOCK in ids:
            size = group.blocks_per_chunk
            null |= {index for index in range(chunks) if not any(ids[index * size : (index + 1) * size])}
    return null
