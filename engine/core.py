"""The engine as a state machine: events in, effects out. No I/O, no clock, no threads.

Everything that decides anything is reached from `Engine.handle`, so all of it can be tested by calling that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from types import MappingProxyType
from typing import Any, Final

from engine.awake import Awake
from engine.commands import Command, ConfigureTiers, Drain, PauseTier
from engine.copies import Copies
from engine.events import (
    CommandAsked,
    CommandDone,
    Continued,
    CopyEnded,
    Discarded,
    Due,
    Effect,
    Event,
    Found,
    Loaded,
    MapEnded,
    Probed,
    Reply,
    RequestArrived,
    Saved,
    Summed,
    Tick,
    TierCleared,
    TierDamaged,
    TransfersEnded,
    UnmapEnded,
    Warn,
)
from engine.hashing import ChunkHasher
from engine.health import PERIODIC_JOBS
from engine.histogram import NOTHING_COUNTED, HistogramReport
from engine.integrity import Integrity
from engine.jobs import Jobs
from engine.l1.cache import L1Cache
from engine.lending import Lending
from engine.lookups import Lookups
from engine.meters import Meters, TransferMeter
from engine.operators import CommandHandler, Operators
from engine.periodic import Periodic, PeriodicJob, attempt
from engine.pins import Pins
from engine.prefetches import Prefetches
from engine.prompts import Prompts, RefusedError
from engine.quotas import Quotas
from engine.registration import Registration
from engine.saves import Saves
from engine.sessions import Sessions
from engine.settings import EngineSettings
from engine.status import CutReason, L1Report, L2Report, LookupReport, StatusReport, TierReport
from engine.tiers import Tier, Tiers
from engine.traffic import Traffic
from engine.tuning import Tuning
from engine.warming import Warming
from engine.wire import messages as m
from engine.wire.codec import BY_MESSAGE
from engine.workers import Workers

_NO_TIERS: Final[Mapping[str, TierReport]] = MappingProxyType({})

Handler = Callable[[RequestArrived, Any], list[Effect]]


class Engine:
    """All state of the server. Belongs to the engine thread."""

    def __init__(
        self,
        settings: EngineSettings,
        cache: L1Cache,
        pool: m.RegisterEngineDrivenReply,
        traffic: Traffic | None = None,
    ) -> None:
        """`pool` names the shared memory that `cache` hands out offsets into; `traffic` is what others study."""
        self._settings: Final = settings
        self._cache = cache
        self._awake = awake = Awake()
        self._sessions = Sessions()
        self._workers = Workers()
        self._refused_requests = 0
        self._transfers_ended: str | None = None
        self._traffic = traffic = traffic or Traffic()
        prompts = Prompts(ChunkHasher(settings.chunk_size))
        liveness = settings.liveness
        self._meters = meters = Meters()
        self._tiers = Tiers(settings.l2)
        self._integrity = integrity = Integrity(cache, enabled=settings.l1_verify)
        self._saves = saves = Saves(cache, self._tiers, integrity)
        saves.configured()
        self._prefetches = Prefetches(cache, self._tiers, saves.came, integrity)
        self._lookups = Lookups(cache, self._sessions, self._workers, prompts, traffic, self._prefetches, saves, awake)
        max_age = liveness.transfer_max_age
        self._copies = Copies(cache, self._sessions, self._workers, prompts, meters, traffic, max_age, saves, integrity)
        self._lending = Lending(cache, self._sessions, self._workers, prompts, meters, traffic, saves, awake, integrity)
        self._registration = Registration(
            self._workers, self._lending.withdraw, self._copies.is_copying, pool, settings.chunk_size, liveness, awake
        )
        self._jobs = Jobs()
        operators = Operators(cache, self._sessions, self._workers, self._copies, prompts, self._jobs, awake)
        self._tuning = Tuning(cache, self._jobs, settings.eviction_policy)
        self._pins = Pins(cache, self._workers, settings.pin_budget)
        quotas = Quotas(cache, self._jobs, settings.quotas)
        self._warming = Warming(cache, self._workers, self._prefetches, self._jobs)
        self._handlers = self._request_handlers()
        self._commands: Final[dict[type[Command[Any]], CommandHandler]] = {
            Drain: self._drain,
            ConfigureTiers: self._configure_tiers,
            PauseTier: self._pause_tier,
            **operators.handlers(),
            **self._tuning.handlers(),
            **self._pins.handlers(),
            **quotas.handlers(),
            **self._warming.handlers(),
        }
        self._meter_of: Final = _meter_of(meters)
        self._periodic: Final = Periodic(dict(zip(PERIODIC_JOBS, self._periodic_jobs(), strict=True)))

    def handle(self, event: Event) -> list[Effect]:
        """What has to be done about an event, in order. Every request gets exactly one reply, now or later."""
        self._awake.hear(event.now)
        effects = self._handle(event)
        return [*effects, *self._lookups.answer(event.now)] if self._lookups.somebody_waits else effects

    @property
    def due(self) -> float:
        """When the engine wants to hear that it is so late; infinite if nothing depends on the time."""
        return self._lookups.due if self._lookups.somebody_waits else inf

    def _handle(self, event: Event) -> list[Effect]:
        match event:
            case RequestArrived():
                return self._request(event)
            case CopyEnded():
                return self._copy_ended(event)
            case MapEnded():
                return self._registration.map_ended(event.now, event.mapping_id, event.problem)
            case UnmapEnded():
                return self._registration.unmap_ended(event.mapping_id)
            case TransfersEnded():
                self._transfers_ended = event.problem
                failed = self._copies.fail_all(event.now, event.problem)
                discarding = self._tuning.transfers_ended(event.now, event.problem)
                waiting = [*self._integrity.transfers_ended(event.now), *self._lookups.answer_all()]
                broken = self._registration.transfers_ended(event.now, event.problem)
                return [*failed, *waiting, *discarding, *broken]
            case CommandAsked():
                return self._command(event)
            case Continued():
                return attempt("jobs", self._jobs.continued, event.now)
            case Discarded():
                return self._tuning.discarded(event.now, event.problem)
            case Found():
                return [*self._prefetches.found(event), *self._warming.proceed(event.now)]
            case Loaded():
                return [*self._prefetches.loaded(event), *self._warming.proceed(event.now)]
            case Saved():
                return self._saves.saved(event)
            case Summed():
                return self._integrity.summed(event)
            case TierCleared():
                self._saves.cleared(event.tier)
                return []
            case TierDamaged():
                return self._saves.damaged(event.tier, event.key)
            case Due():
                return []
            case Probed():
                self._lookups.probed(event, self._settings.liveness.worker_timeout)
                return self._registration.probed(event)
            case Tick():
                return self._periodic.tick(event.now)

    def report(
        self,
        *,
        failed_requests: int,
        dropped_messages: int,
        dropped_replies: int,
        cut_connections: tuple[tuple[CutReason, int], ...] = (),
        lookup_seconds: HistogramReport = NOTHING_COUNTED,
        tiers: Mapping[str, TierReport] = _NO_TIERS,
    ) -> StatusReport:
        """The state in numbers, with what the socket has counted and the loop has timed.

        Costs the same however much is cached.
        """
        problems = (self._transfers_ended,) if self._transfers_ended else ()
        return StatusReport(
            is_healthy=not problems,
            problems=problems,
            chunk_size=self._settings.chunk_size,
            hash_algorithm=self._settings.hash_algorithm,
            eviction_policy=self._tuning.policy_name,
            workers=self._workers.reports(),
            active_sessions=len(self._sessions),
            active_prefetch_jobs=self._prefetches.running,
            running_transfers=self._copies.running + self._integrity.running,
            running_saves=self._saves.left,
            skipped_stores=self._copies.skipped_stores,
            failed_requests=self._refused_requests + failed_requests,
            dropped_messages=dropped_messages,
            dropped_replies=dropped_replies,
            cut_connections=cut_connections,
            lookups=self._lookup_report(lookup_seconds),
            transfers=self._meters.reports(),
            l1=self._l1_report(),
            l2=self._l2_reports(tiers),
        )

    def _request(self, event: RequestArrived) -> list[Effect]:
        message = event.message
        first = self._registration.seen(event.to.client, getattr(message, "instance_id", None))
        if isinstance(message, m.Ping):
            return [Reply(event.to, self._registration.ping(event.to.client, message, first=first))]
        try:
            return self._handlers[type(message)](event, message)
        except RefusedError as refusal:
            self._refused_requests += 1
            self._refused_transfer(event)
            operation = BY_MESSAGE[type(message)]
            return [Warn(f"{operation.name} refused: {refusal}"), Reply(event.to, operation.failure)]

    def _copy_ended(self, event: CopyEnded) -> list[Effect]:
        effects = self._copies.ended(event)
        if event.lost_mapping is not None:
            effects += self._registration.mapping_lost(event.lost_mapping, event.problem)
        return effects

    def _refused_transfer(self, event: RequestArrived) -> None:
        meter = self._meter_of.get(type(event.message))
        if meter is not None:
            meter.answer(event.now - event.received, done=False)

    def _request_handlers(self) -> dict[type[m.Message], Handler]:
        return {
            m.GetChunkSize: lambda event, _: [Reply(event.to, self._settings.chunk_size)],
            m.GetExperimental: lambda event, _: [Reply(event.to, [])],
            m.Noop: lambda event, _: [Reply(event.to, "OK")],
            m.ReportBlockAllocation: lambda event, _: [Reply(event.to, None)],
            m.SubscribeKVEvents: lambda event, _: [Reply(event.to, m.KVEventBatch())],
            m.Clear: self._clear,
            m.Lookup: self._lookup,
            m.QueryPrefetchStatus: self._collect,
            m.WaitPrefetchStatus: self._wait,
            m.FreeLookupLocks: self._free,
            m.EndSession: self._end,
            m.RegisterKVCache: self._registration.register_kv_cache,
            m.UnregisterKVCache: self._registration.unregister,
            m.RegisterEngineDriven: self._registration.register_engine_driven,
            m.UnregisterEngineDriven: self._registration.unregister,
            m.Store: self._copies.store,
            m.Retrieve: self._copies.retrieve,
            m.PrepareStore: self._lending.prepare_store,
            m.CommitStore: self._lending.commit_store,
            m.PrepareRetrieve: self._lending.prepare_retrieve,
            m.CommitRetrieve: self._lending.commit_retrieve,
        }

    def _draining_handlers(self) -> dict[type[m.Message], Handler]:
        """Stand in for those that would begin something."""
        return {m.Lookup: self._find_nothing, m.Store: self._copies.skip_store, m.PrepareStore: self._lend_nothing}

    def _find_nothing(self, event: RequestArrived, message: m.Lookup) -> list[Effect]:
        self._lookups.end(event.to.client, message.key.request_id)
        return [Reply(event.to, None)]

    def _lend_nothing(self, event: RequestArrived, _: m.PrepareStore) -> list[Effect]:
        return [Reply(event.to, m.PrepareStoreReply())]

    def _lookup(self, event: RequestArrived, message: m.Lookup) -> list[Effect]:
        effects = self._lookups.lookup(event.now, event.to.client, message.key)
        self._traffic.prompt(event.now, message.key)
        return [Reply(event.to, None), *effects]

    def _collect(self, event: RequestArrived, message: m.QueryPrefetchStatus) -> list[Effect]:
        return [Reply(event.to, self._lookups.collect(event.now, event.to.client, message.request_id))]

    def _wait(self, event: RequestArrived, message: m.WaitPrefetchStatus) -> list[Effect]:
        return self._lookups.wait(event.now, event.to, message.request_id, message.timeout)

    def _free(self, event: RequestArrived, message: m.FreeLookupLocks) -> list[Effect]:
        self._lookups.free(event.now, event.to.client, message.key)
        return [Reply(event.to, None)]

    def _end(self, event: RequestArrived, message: m.EndSession) -> list[Effect]:
        self._lookups.end(event.to.client, message.request_id)
        return [Reply(event.to, None)]

    def _clear(self, event: RequestArrived, _: m.Clear) -> list[Effect]:
        self._cache.clear()
        return [Reply(event.to, None)]

    def _command(self, event: CommandAsked) -> list[Effect]:
        """Raises EngineError where a command cannot be carried out; then nothing was changed."""
        return self._commands[type(event.command)](event, event.command)

    def _drain(self, event: CommandAsked, _: Drain) -> list[Effect]:
        self._handlers |= self._draining_handlers()
        return [*self._saves.flush(), CommandDone(event.ticket, None)]

    def _configure_tiers(self, event: CommandAsked, command: ConfigureTiers) -> list[Effect]:
        self._tiers.configure(command.tiers)
        self._saves.configured()
        return [CommandDone(event.ticket, None)]

    def _pause_tier(self, event: CommandAsked, command: PauseTier) -> list[Effect]:
        tier = self._tiers.find(command.name)
        if tier is not None:
            tier.paused = command.paused
        return [CommandDone(event.ticket, tier is not None)]

    def _periodic_jobs(self) -> tuple[PeriodicJob, ...]:
        return (
            self._expire_leases,
            self._expire_reservations,
            self._expire_pins,
            self._look_after_clients,
            self._jobs.proceed,
            lambda now: self._saves.write_back(),
        )

    def _expire_leases(self, now: float) -> list[Effect]:
        self._lookups.expire(self._settings.liveness)
        return []

    def _expire_reservations(self, now: float) -> list[Effect]:
        self._lending.expire(self._settings.liveness.reservation_ttl)
        return []

    def _expire_pins(self, now: float) -> list[Effect]:
        self._pins.tick(now)
        return []

    def _look_after_clients(self, now: float) -> list[Effect]:
        silent = [*self._lookups.probes(self._settings.liveness.worker_timeout), *self._registration.probes()]
        return [*dict.fromkeys(silent), *self._registration.remap(now)]

    def _lookup_report(self, seconds: HistogramReport) -> LookupReport:
        found = self._lookups
        return LookupReport(
            found.requests,
            found.without_workers,
            found.without_chunks,
            found.hit_objects,
            found.prefetched_chunks,
            seconds,
            found.prefetched_objects,
        )

    def _l2_reports(self, reports: Mapping[str, TierReport]) -> tuple[L2Report, ...]:
        return tuple(self._l2_report(tier, reports[tier.name]) for tier in self._tiers if tier.name in reports)

    def _l2_report(self, tier: Tier, report: TierReport) -> L2Report:
        settings = tier.settings
        return L2Report(
            type=settings.type,
            name=settings.name,
            store_policy=settings.store_policy,
            is_required=settings.required,
            is_paused=tier.paused,
            capacity_bytes=settings.options.get("capacity"),
            loaded_objects=tier.loaded_objects,
            dropped_saves=tier.dropped_saves,
            unsaved_evictions=self._saves.unsaved(tier),
            tier=report,
        )

    def _l1_report(self) -> L1Report:
        cache, counters = self._cache, self._cache.counters
        leased, reserved = cache.objects_in_use
        return L1Report(
            memory_total_bytes=cache.capacity,
            memory_used_bytes=cache.used,
            total_object_count=cache.ready_objects,
            leased_object_count=leased,
            reserved_object_count=reserved,
            reserved_bytes=cache.reserved_bytes,
            hit_chunks=self._lookups.hit_chunks,
            missed_chunks=self._lookups.missed_chunks,
            stored_objects=counters.stored_objects,
            evicted_objects=counters.evicted_objects,
            evicted_bytes=counters.evicted_bytes,
            refused_objects=sum(counters.refused_objects.values()),
            refusals=tuple(counters.refused_objects.items()),
            cleared_objects=counters.cleared_objects,
            missed_lookups=self._lookups.missed(),
            absent_reads=counters.absent_reads,
            unready_reads=counters.unready_reads,
            verified_objects=self._integrity.verified_objects,
            corrupt_objects=self._integrity.corrupt_objects,
        )


def _meter_of(meters: Meters) -> dict[type[m.Message], TransferMeter]:
    """Where a refused request counts as a failure. One that commits what was taken back meanwhile does, too."""
    return {
        m.Store: meters.server_stores,
        m.Retrieve: meters.server_retrieves,
        m.PrepareStore: meters.worker_stores,
        m.CommitStore: meters.worker_stores,
        m.PrepareRetrieve: meters.worker_retrieves,
        m.CommitRetrieve: meters.worker_retrieves,
    }
