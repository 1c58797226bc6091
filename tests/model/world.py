"""The engine with a clock, a transfer thread and an oracle around it, and every request and reply on record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import count
from math import inf
from random import Random
from typing import Any

import msgspec
from blake3 import blake3

from engine.commands import A, Command, ConfigureTiers, PauseTier
from engine.core import Engine
from engine.events import (
    Checksum,
    CommandAsked,
    CommandDone,
    Copy,
    CopyEnded,
    Due,
    Event,
    Failed,
    Find,
    Load,
    Loaded,
    Map,
    Probe,
    Probed,
    Reply,
    ReplyTo,
    RequestArrived,
    Save,
    Tick,
    TierCleared,
    Unmap,
    Warn,
)
from engine.keys import namespace
from engine.l1.cache import L1Cache
from engine.l1.policies.base import Ranked
from engine.l1.policies.lru_policy import Policy
from engine.settings import EngineSettings, L2Settings, Liveness
from engine.status import StatusReport
from engine.wire import messages as m
from engine.wire.codec import BY_MESSAGE, encode_value
from tests.model.cast import CHUNK, Role, Shape
from tests.model.device import Device
from tests.model.oracle import PAGE, Identity, Oracle, Session, SessionId, Slot
from tests.model.parties import Job, Registration, Worker
from tests.model.storage import How, Storage, Work
from tests.model.transfers import Task, Transfers

REPLIES: dict[type[m.Message], Any] = {
    m.Store: tuple[bytes, bool],
    m.Retrieve: tuple[bytes, bool],
    m.QueryPrefetchStatus: int | None,
    m.WaitPrefetchStatus: int | None,
    m.RegisterEngineDriven: m.RegisterEngineDrivenReply,
    m.PrepareStore: m.PrepareStoreReply,
    m.CommitStore: bool,
    m.PrepareRetrieve: m.PrepareRetrieveReply,
    m.CommitRetrieve: bool,
    m.Ping: bool,
}
"""Type of the value frame; operations that are missing here are answered without one."""

LONGEST_PAUSE = 3.0
"""Seconds between two events of an engine that is awake."""

MAY_WAIT = (m.Store, m.Retrieve, m.RegisterKVCache, m.UnregisterKVCache, m.UnregisterEngineDriven)
"""What may be answered after the transfer thread has done something; everything else is answered at once, but for
lookups that wait for L2."""

ROOT = blake3(bytes(12)).digest()


class World:
    """One engine and all around it; what its clients do is in the modules named after them."""

    def __init__(
        self,
        pages: int,
        roles: Iterable[Role],
        liveness: Liveness,
        tiers: tuple[L2Settings, ...] = (),
        *,
        verify: bool = False,
    ) -> None:
        self.now = 1000.0
        self._heard = self._awake = self.now
        """When the engine heard of the time last, and how long it had been awake then."""
        self.random = Random(pages)
        self.liveness = liveness
        self.arena = bytearray(pages * PAGE)
        self.transfers = Transfers(self.arena)
        self.oracle = Oracle(self.arena, self._key_of)
        self.roomy = pages >= 1000
        """Nothing ever has to be evicted."""
        self.cache = L1Cache(len(self.arena), partial(_WatchedPolicy, self.oracle.evict))
        self.storage = Storage(self.arena, self.random)
        self.storage.configure(tiers)
        settings = EngineSettings(
            chunk_size=CHUNK, l1_size=len(self.arena), liveness=liveness, l2=tiers, l1_verify=verify
        )
        self.pool = m.RegisterEngineDrivenReply("pool", len(self.arena))
        self.engine = Engine(settings, self.cache, self.pool)
        self.workers = [Worker(role, b"worker %d" % role.instance_id) for role in roles]
        self.connections: set[bytes] = set()
        self.vanished = False
        """Nobody is connected any more."""
        self.owed_false: set[bytes] = set()
        """Connections that began with a ping, and have not been told yet."""
        self.told_unknown: set[int] = set()
        """Unknown workers whose ping has been answered False."""
        self.jobs: dict[int, Job] = {}
        self.mappings: dict[int, Registration] = {}
        self.opening: Device | None = None
        """What the next request to map is about."""
        self.verify = verify
        self.sound = True
        """False from an event until all has been checked, or for good if that failed."""
        self._calls: dict[ReplyTo, tuple[m.Message, Callable[[Any], None]]] = {}
        self._uids = count()
        self._answers: list[Any] = []
        self._fingerprints: dict[str, bytes] = {}
        self._object_bytes: dict[str, int] = {}

    # Requests

    def send(
        self, client: bytes, message: m.Message, check: Callable[[Any], None], received: float | None = None
    ) -> list[Task]:
        """Lets the engine handle a request; `check` is called with the value of its reply, now or later."""
        operation = BY_MESSAGE[type(message)]
        uid = msgspec.msgpack.encode(next(self._uids))
        to = ReplyTo(client, uid, msgspec.msgpack.encode(operation.id or operation.name))
        self._calls[to] = (message, check)
        self.connections.add(client)
        received = self.now if received is None else received
        tasks = self._handle(RequestArrived(self.now, received, to, message))
        if to in self._calls and isinstance(message, m.WaitPrefetchStatus):
            assert self.now < self.engine.due < inf, "a lookup waits for nothing"
        elif to in self._calls:
            assert isinstance(message, MAY_WAIT), f"{message} was not answered"
            assert self.transfers.tasks, f"nothing is under way that could end in an answer to {message}"
        return tasks

    def ask(self, client: bytes, message: m.Message) -> Any:
        """The value of a reply that has to come at once."""
        values: list[Any] = []
        self.send(client, message, values.append)
        assert values, f"{message} was not answered"
        return values[0]

    def tell(self, client: bytes, message: m.Message) -> None:
        """A request that is answered at once, without a value."""
        assert self.ask(client, message) is None

    def seen(self, worker: Worker) -> None:
        """The worker gives a sign of life."""
        if worker.registration is not None:
            worker.registration.seen, worker.registration.client = self.awake, worker.client

    def knows(self, shape: Shape) -> None:
        """A layout is used from now on."""
        self._fingerprints.setdefault(shape.name, shape.fingerprint())
        self._object_bytes[shape.name] = shape.object_bytes

    def layouts(self, pair: tuple[str, int]) -> set[str]:
        """Under which a chunk has to be there to count; none if one of the workers could not serve its retrieve."""
        known = [x.registration for x in self.workers if x.registration is not None and x.role.pair == pair]
        return {x.shape.name for x in known} if all(x.state == "ready" for x in known) else set()

    # Time, and the transfer thread

    @property
    def awake(self) -> float:
        """The time, without that in which the engine stood still: nobody is judged by that."""
        pause = self.now - self._heard
        return self._awake + (pause if pause <= LONGEST_PAUSE else 0.0)

    @property
    def can_sum_up(self) -> bool:
        """Whether workers that copy by themselves can be served: somebody computes the checksums that are wanted."""
        return not (self.verify and self.transfers.ended)

    def pass_time(self, seconds: float) -> None:
        """The engine is awake, and hears of it."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + LONGEST_PAUSE - 0.01)
            if self.engine.due < inf:
                self._handle(Due(self.now))
                assert self.engine.due > self.now, "the time comes again and again"
            else:
                # PERF: Most of the time nobody waits for anything, and thousands of these are nearly all there is.
                assert not self.engine.handle(Due(self.now))
                self._awake, self._heard = self.awake, self.now

    def stand_still(self, seconds: float) -> None:
        """The engine hears of it when it is over, or later."""
        self.now += seconds
        if self.now >= self.engine.due:
            self._handle(Due(self.now))
            assert self.engine.due > self.now, "the time comes again and again"

    def tick(self) -> None:
        self.oracle.expire(self.awake, self.liveness.lease_ttl, self.liveness.session_ttl)
        for worker in self.workers:
            if worker.registration is not None:
                self._expire(worker, worker.registration)
        self._handle(Tick(self.now))

    def finish_transfer(self, problem: str | None = None) -> None:
        """The transfer thread has done what it was at, or failed to."""
        task, event = self.transfers.finish(self.now, problem)
        job, done = None, False
        if isinstance(event, CopyEnded):
            job = self.jobs.pop(event.job_id)
            # A store that took too long may have read blocks that had a new owner.
            done = event.problem is None and not (job.is_store and self.now > job.not_after)
            job.end(self.oracle, done=done)
        elif isinstance(task.effect, Map):
            registration = self.mappings[task.effect.mapping_id]
            if registration.state in ("mapping", "broken"):
                registration.state = "broken" if problem else "ready"
        self._handle(event)
        assert job is None or job.blocks.outcome == [done]

    def finish_transfers(self) -> None:
        while self.transfers.tasks:
            self.finish_transfer()

    def end_transfers(self) -> None:
        """The transfer thread dies."""
        jobs = list(self.jobs.values())
        for job in jobs:
            job.end(self.oracle, done=False)
        self.jobs.clear()
        for worker in self.workers:
            if worker.registration is not None and worker.registration.device is not None:
                worker.registration.state = "broken"
        self.transfers.ending = True
        self._handle(self.transfers.end(self.now))
        self.transfers.ending = False
        assert all(job.blocks.outcome == [False] for job in jobs)
        self._nobody_waits()

    # L2

    def finish_storage(self, work: Work, how: How = "done") -> None:
        """A tier has done something, or failed to."""
        event = self.storage.finish(self.now, work, how)
        slot = work.slot
        if slot is not None and isinstance(event, Loaded):
            slot.data = bytes(self.arena[slot.offset : slot.offset + slot.size])
            if event.outcome == "done":
                assert slot.data in self.oracle.ever[slot.identity], "L2 has something else than what was saved"
            self.oracle.end_write(slot, written=event.outcome == "done")
        elif slot is not None:
            self.oracle.end_save(slot)
        self._handle(event)

    def finish_loads(self) -> None:
        """Everything that lookups may wait for comes."""
        while loads := [work for work in self.storage.work if not isinstance(work.effect, Save)]:
            self.finish_storage(loads[0])

    def finish_all_storage(self) -> None:
        while self.storage.work:
            self.finish_storage(self.storage.work[0])

    def configure_tiers(self, tiers: tuple[L2Settings, ...]) -> None:
        self.storage.configure(tiers)
        self.command(ConfigureTiers(tiers))

    def pause_tier(self, name: str, *, paused: bool) -> None:
        (self.storage.paused.add if paused else self.storage.paused.discard)(name)
        assert self.command(PauseTier(name, paused)) is True

    def clear_tier(self, name: str) -> None:
        """The tier says that it begins to delete everything, and does."""
        self.storage.objects.pop(name, None)
        self._handle(TierCleared(self.now, name))

    def hits_of(self, session_id: SessionId) -> int | None:
        """What a lookup has found; None while that is not known."""
        session = self.engine._sessions.get(*session_id)
        assert session is not None
        return session.hits if session.prefetch is None else None

    def settle(self, session_id: SessionId, session: Session, hits: int, *, freed: bool = False) -> None:
        """The result of a lookup is known now. `freed`: some of its leases have ended already."""
        held = self.engine._sessions.get(*session_id)
        assert held is not None
        leases = held.leases

        def place_of(identity: Identity) -> tuple[int, int] | None:
            key = self.oracle.key_of(identity)
            if freed and key not in leases:
                return None
            entry, readers = leases[key]
            assert readers == session.readers
            return entry.offset, self._object_bytes[identity.layout]

        self.oracle.settle(session, hits, place_of)

    def _ask_storage(self, effect: Find | Load | Save) -> None:
        slot: Slot | None = None
        if not isinstance(effect, Find):
            identity = self.oracle.identity(effect.slot.key)
            size = self._object_bytes[identity.layout]
            assert effect.slot.size == -(-size // PAGE) * PAGE
            if isinstance(effect, Load):
                slot = self.oracle.begin_write(identity, effect.slot.offset, size, b"")
            else:
                slot = self.oracle.begin_save(identity, effect.slot.offset, size)
        self.storage.submit(effect, slot)

    # Operators

    def command(self, command: Command[A]) -> A:
        """The answer to a command that has to be answered at once."""
        self._handle(CommandAsked(self.now, 7, command))
        answer: A = self._answers.pop()
        assert not self._answers
        return answer

    # Checks

    def report(self) -> StatusReport:
        return self.engine.report(failed_requests=0, dropped_messages=0, dropped_replies=0)

    def state(self) -> object:
        """What a refused request must leave as it was."""
        report = self.report()
        l1 = replace(report.l1, absent_reads=0, unready_reads=0)
        report = replace(report, failed_requests=0, transfers=(), l1=l1)
        return report, {key: slot.offset for key, slot in self.oracle.present.items()}

    def check(self) -> None:
        self.oracle.check(self.cache.used, self.cache.capacity)
        if not self.storage.is_loading:
            # What is loaded comes prefix first; it is put in order when the last of it has come.
            self.oracle.check_order(entry.key for entry in self.cache._partitions._shared.victims())
        report = self.report()
        assert report.l1.total_object_count == len(self.oracle.present)
        assert report.l1.evicted_objects == self.oracle.evicted
        assert report.l1.reserved_object_count == len(self.oracle.writes)
        assert report.l1.leased_object_count >= len(self.oracle.held()), "a promise is not backed by a lease"
        assert report.running_transfers == len(self.jobs)
        assert report.l1.corrupt_objects == 0, "what is as it was stored is taken for corrupt"
        assert report.active_sessions == len(self.oracle.sessions)
        known = {x.role.instance_id: x.registration.state for x in self.workers if x.registration is not None}
        assert {x.instance_id: x.state for x in report.workers} == known
        assert not (self.roomy and self.oracle.evicted) or self.storage.replaces_l1
        assert self.cache._borrowed <= len(self.oracle.saves)
        self.sound = True

    def wait_for_silence(self) -> None:
        """Whoever has not left is taken for gone; nothing is left but what is cached."""
        self.vanished = True
        self.finish_transfers()
        self.finish_all_storage()
        self._nobody_waits()
        times = self.liveness
        self.pass_time(1 + max(times.registration_grace, times.worker_timeout, times.session_ttl, times.lease_ttl))
        self.tick()
        self.check()
        self.finish_transfers()
        self.finish_all_storage()
        self.check()
        report = self.report()
        assert (report.active_prefetch_jobs, report.running_saves, self.cache._borrowed) == (0, 0, 0)
        assert (report.l1.leased_object_count, report.l1.reserved_object_count) == (0, 0), "something is held for ever"
        assert report.workers == ()
        assert self.cache.used == sum(len(slot.pages) * PAGE for slot in self.oracle.present.values())

    def _nobody_waits(self) -> None:
        waiting = [message for message, _ in self._calls.values()]
        assert not waiting, f"nobody will answer {waiting}"

    # What time and the engine do

    def _expire(self, worker: Worker, registration: Registration) -> None:
        for lent in registration.lent.values():
            if self.awake - lent.since > self.liveness.reservation_ttl:
                for slot in lent.slots:
                    slot.void = True
        patience = self.liveness.worker_timeout if registration.pinged else self.liveness.registration_grace
        silent = self.awake - max(registration.seen, registration.stood)
        if silent > min(10.0, patience) and self._connected(registration.client):
            registration.stood = self.awake
        elif silent > patience:
            registration.withdraw(self.oracle)
            worker.registration = None

    def _connected(self, client: bytes) -> bool:
        return not self.vanished and any(client in (worker.client, worker.role.scheduler) for worker in self.workers)

    def _handle(self, event: Event) -> list[Task]:
        """What the engine has asked the transfer thread for."""
        self.sound = False
        self._awake, self._heard = self.awake, self.now
        tasks, probes = [], []
        for effect in self.engine.handle(event):
            match effect:
                case Reply():
                    assert effect.to in self._calls, f"a second reply: {effect}"
                    message, check = self._calls.pop(effect.to)
                    check(_on_the_wire(message, effect.value))
                case Copy() | Unmap():
                    tasks.append(self.transfers.submit(effect))
                case Map():
                    tasks.append(self.transfers.submit(effect, self.opening))
                case Probe():
                    probes.append(effect)
                case Find() | Load() | Save():
                    self._ask_storage(effect)
                case Checksum():
                    tasks += self._handle(self.transfers.sum_up(self.now, effect))
                case CommandDone():
                    self._answers.append(effect.answer)
                case Warn():
                    assert effect.text
                case Failed():
                    raise effect.error
        for probe in probes:
            connected = self._connected(probe.client)
            tasks += self._handle(Probed(self.now, probe.client, connected))
        return tasks

    def _key_of(self, identity: Identity) -> bytes:
        hash_ = ROOT
        for start in range(0, len(identity.tokens), CHUNK):
            words = b"".join(token.to_bytes(4, "big") for token in identity.tokens[start : start + CHUNK])
            hash_ = blake3(hash_ + words).digest()
        fingerprint = self._fingerprints[identity.layout]
        return namespace(identity.model, identity.world_size, identity.shard, fingerprint, identity.salt).prefix + hash_


class _WatchedPolicy(Policy):
    """The LRU policy; tells of every eviction."""

    def __init__(self, evicted: Callable[[bytes], None], capacity: int) -> None:
        super().__init__(capacity)
        self._evicted = evicted

    def evict(self, ranked: Ranked) -> None:
        super().evict(ranked)
        assert isinstance(ranked.key, bytes)
        self._evicted(ranked.key)


def _on_the_wire(message: m.Message, value: Any) -> Any:
    """The value as a client reads it, which is strict about types."""
    kind = REPLIES.get(type(message))
    if kind is None:
        assert value is None, f"{message} is answered {value}"
        return None
    return msgspec.msgpack.decode(encode_value(value), type=kind, strict=True)
