"""The engine-driven mode: the worker copies by itself, into and out of slots of the shared pool lent to it. Pure."""

from __future__ import annotations

from functools import partial

from engine.awake import Awake
from engine.events import Effect, Reply, RequestArrived, Warn
from engine.integrity import Integrity
from engine.l1.cache import L1Cache
from engine.l1.entry import Entry
from engine.layouts import SlotLayout
from engine.meters import Meters
from engine.prompts import Chunks, Prompts, RefusedError
from engine.saves import Saves
from engine.sessions import Sessions
from engine.slots import reserve_missing, take_readable
from engine.traffic import Traffic
from engine.wire.messages import (
    CommitRetrieve,
    CommitStore,
    Key,
    PrepareRetrieve,
    PrepareRetrieveReply,
    PrepareStore,
    PrepareStoreReply,
    RetrieveSlots,
    Slot,
    StoreSlots,
)
from engine.workers import Pin, Range, Reservation, Worker, Workers

_MOST_PINS = 1024
"""Retrieves of one worker that were prepared and not committed; a worker commits each before the next."""


class Lending:
    """The worker's side of the protocol where the worker copies. Belongs to the engine thread.

    What is lent is owned by the worker, and comes back when it commits, leaves or is gone; never by time alone, since
    a slot must not get a new owner while somebody may still write to it or read from it.
    """

    def __init__(
        self,
        cache: L1Cache,
        sessions: Sessions,
        workers: Workers,
        prompts: Prompts,
        meters: Meters,
        traffic: Traffic,
        saves: Saves,
        awake: Awake,
        integrity: Integrity,
    ) -> None:
        self._cache = cache
        self._saves = saves
        self._awake = awake
        self._integrity = integrity
        self._sessions = sessions
        self._workers = workers
        self._prompts = prompts
        self._traffic = traffic
        self._stores = meters.worker_stores
        self._retrieves = meters.worker_retrieves

    def prepare_store(self, event: RequestArrived, message: PrepareStore) -> list[Effect]:
        """Lends a slot for each absent chunk; what finds no room is left out, the tail first. Raises RefusedError."""
        worker, layout, chunks = self._resolve(message.instance_id, message.key)
        if chunks.range in worker.reservations:
            raise RefusedError("the same range is being stored already by this worker")
        size = self._workers.chunk_bytes(worker.pair)
        self._traffic.stored(message.key.request_id, chunks, size, self._cache.counters.clears)
        reserved = reserve_missing(self._cache, chunks, layout.object_bytes, event.now)
        if reserved:
            entries = [entry for _, entry in reserved]
            reservation = Reservation(entries, chunks.suffix_first, self._awake.now, event.received)
            worker.reservations[chunks.range] = reservation
            self._stores.begin()
        else:
            self._stores.answer(event.now - event.received, done=True)
        slots = [_slot(entry, layout) for _, entry in reserved]
        return [Reply(event.to, PrepareStoreReply(StoreSlots(slots, [index for index, _ in reserved])))]

    def commit_store(self, event: RequestArrived, message: CommitStore) -> list[Effect]:
        """Publishes what was lent for writing, unless a clear or its age has dropped it. Raises RefusedError.

        If checksums are wanted that is done when they are there. What was lent is not the worker's any more meanwhile:
        it has said that every byte is written.
        """
        worker, layout, chunks = self._resolve(message.instance_id, message.key)
        reservation = worker.reservations.pop(chunks.range, None)
        if message.data:
            self._abort(reservation)
            self._end_store(event.now, reservation, layout, done=False)
            warning = (
                f"worker {worker.instance_id} sent the bytes of a store instead of writing them to the shared pool: "
                "it cannot open the pool; share /dev/shm between it and kvkeep, and run both as the same user"
            )
            return [Warn(warning), Reply(event.to, False)]
        if reservation is None:
            return [Reply(event.to, False)]
        publish = partial(self._publish, event, layout, reservation)
        if self._integrity.enabled:
            return self._integrity.ask(event.now, reservation.entries, publish)
        return publish(event.now, ())

    def _publish(
        self,
        event: RequestArrived,
        layout: SlotLayout,
        reservation: Reservation,
        now: float,
        checksums: tuple[bytes, ...] | None,
    ) -> list[Effect]:
        if checksums is None:
            self._abort(reservation)
            self._end_store(now, reservation, layout, done=False)
            return [Reply(event.to, False)]
        self._integrity.keep(reservation.entries, checksums)
        published = all(entry.visible for entry in reservation.entries)
        for entry in reversed(reservation.entries):
            self._cache.commit(entry)
        self._cache.touch(reservation.suffix_first)
        self._end_store(now, reservation, layout, done=published)
        return [Reply(event.to, published), *self._saves.stored(reservation.entries)]

    def prepare_retrieve(self, event: RequestArrived, message: PrepareRetrieve) -> list[Effect]:
        """Lends every chunk of the range for reading, or none. Uses up this request's leases; raises RefusedError.

        What has a checksum is verified first.
        """
        worker, layout, chunks = self._resolve(message.instance_id, message.key)
        if not chunks.count:
            raise RefusedError("the range to retrieve is empty")
        if sum(map(len, worker.pins.values())) >= _MOST_PINS:
            raise RefusedError(f"{_MOST_PINS} retrieves of worker {worker.instance_id} were prepared and not committed")
        entries = take_readable(self._cache, self._sessions, message.key.request_id, chunks)
        pin = Pin(entries, chunks.suffix_first, event.received)
        self._retrieves.begin()
        lend = partial(self._lend, event, worker, layout, chunks.range, pin)
        summed = self._integrity.summed_up(entries)
        return self._integrity.ask(event.now, summed, lend) if summed else lend(event.now, ())

    def _lend(
        self,
        event: RequestArrived,
        worker: Worker,
        layout: SlotLayout,
        range_: Range,
        pin: Pin,
        now: float,
        checksums: tuple[bytes, ...] | None,
    ) -> list[Effect]:
        """Lends what is not corrupt, unless the worker has left meanwhile. `checksums`: of those that have one."""
        corrupt = self._integrity.compare(self._integrity.summed_up(pin.entries), checksums or ())
        if checksums is None or corrupt or self._workers.get(worker.instance_id) is not worker:
            self._release(pin)
            count = len(pin.entries)
            self._retrieves.end(now - pin.received, count, count * layout.object_bytes, done=False)
            return [*corrupt, Reply(event.to, PrepareRetrieveReply(False))]
        worker.pins.setdefault(range_, []).append(pin)
        slots = RetrieveSlots([_slot(entry, layout) for entry in pin.entries])
        return [Reply(event.to, PrepareRetrieveReply(True, context=slots))]

    def commit_retrieve(self, event: RequestArrived, message: CommitRetrieve) -> list[Effect]:
        """Takes back what was lent for reading, if anything was. Raises RefusedError."""
        worker, layout, chunks = self._resolve(message.instance_id, message.key)
        pins = worker.pins.get(chunks.range)
        if pins:
            pin = pins.pop(0)
            self._release(pin)
            count = len(pin.entries)
            self._retrieves.end(event.now - pin.received, count, count * layout.object_bytes, done=True)
            if not pins:
                del worker.pins[chunks.range]
        return [Reply(event.to, True)]

    def withdraw(self, worker: Worker) -> None:
        """The worker has left or is gone: nothing it had not committed becomes visible."""
        for reservation in worker.reservations.values():
            self._abort(reservation)
            self._stores.abandon()
        for pins in worker.pins.values():
            for pin in pins:
                self._release(pin)
                self._retrieves.abandon()
        worker.reservations.clear()
        worker.pins.clear()

    def expire(self, reservation_ttl: float) -> None:
        """Lets others store the chunks that a worker was lent long ago; its slots stay its own until it is done."""
        now = self._awake.now
        for worker in self._workers:
            for reservation in worker.reservations.values():
                if now - reservation.since > reservation_ttl:
                    for entry in reservation.entries:
                        self._cache.doom(entry, "expired")

    def _resolve(self, instance_id: int, key: Key) -> tuple[Worker, SlotLayout, Chunks]:
        worker = self._workers.get(instance_id)
        if worker is None:
            raise RefusedError(f"worker {instance_id} is not registered")
        if not isinstance(worker.layout, SlotLayout):
            raise RefusedError(f"worker {instance_id} is {worker.state} and registered as {worker.mode}")
        return worker, worker.layout, self._prompts.chunks(key, worker)

    def _end_store(self, now: float, reservation: Reservation | None, layout: SlotLayout, *, done: bool) -> None:
        if reservation is not None:
            count = len(reservation.entries)
            self._stores.end(now - reservation.received, count, count * layout.object_bytes, done=done)

    def _abort(self, reservation: Reservation | None) -> None:
        for entry in reservation.entries if reservation else ():
            self._cache.abort(entry)

    def _release(self, pin: Pin) -> None:
        for entry in reversed(pin.entries):
            self._cache.release(entry)
        self._cache.touch(pin.suffix_first)


def _slot(entry: Entry, layout: SlotLayout) -> Slot:
    return Slot(entry.offset, layout.object_bytes, layout.shape, layout.dtype)
