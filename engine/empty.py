"""The reports of an engine and of tiers that are not there: every number is 0, and nothing is left out. Pure."""

from __future__ import annotations

from typing import Final, get_args

from engine.histogram import Histogram
from engine.meters import LOOKUP_BOUNDS, TIER_BOUNDS, Meters
from engine.settings import L2Settings
from engine.status import L1Report, L2Report, LookupReport, RefusalReason, StatusReport, TierOutcome, TierReport

EMPTY_REPORT: Final = StatusReport(
    is_healthy=False,
    problems=(),
    chunk_size=0,
    hash_algorithm="",
    eviction_policy="",
    workers=(),
    active_sessions=0,
    active_prefetch_jobs=0,
    running_transfers=0,
    running_saves=0,
    skipped_stores=0,
    failed_requests=0,
    dropped_messages=0,
    dropped_replies=0,
    lookups=LookupReport(0, 0, 0, 0, 0, Histogram(LOOKUP_BOUNDS).snapshot()),
    transfers=Meters().reports(),
    l1=L1Report(
        memory_total_bytes=0,
        memory_used_bytes=0,
        total_object_count=0,
        leased_object_count=0,
        reserved_object_count=0,
        reserved_bytes=0,
        hit_chunks=0,
        missed_chunks=0,
        stored_objects=0,
        evicted_objects=0,
        evicted_bytes=0,
        refused_objects=0,
        refusals=tuple((reason, 0) for reason in get_args(RefusalReason)),
        cleared_objects=0,
        missed_lookups=(),
        absent_reads=0,
        unready_reads=0,
        verified_objects=0,
        corrupt_objects=0,
    ),
    l2=(),
)

_NOTHING_DONE: Final[tuple[tuple[TierOutcome, int], ...]] = tuple((outcome, 0) for outcome in get_args(TierOutcome))
_NO_TIME: Final = Histogram(TIER_BOUNDS).snapshot()


def empty_tier(settings: L2Settings) -> L2Report:
    """The report of a tier that is configured and was not made yet."""
    tier = TierReport(
        name=settings.name,
        state="closed",
        problem="the engine is not there",
        used_objects=None,
        used_bytes=None,
        waiting_loads=0,
        waiting_saves=0,
        found_objects=0,
        absent_objects=0,
        loads=_NOTHING_DONE,
        saves=_NOTHING_DONE,
        loaded_bytes=0,
        saved_bytes=0,
        load_seconds=_NO_TIME,
        save_seconds=_NO_TIME,
        find_seconds=_NO_TIME,
        retries=0,
        work=None,
        work_done=0,
    )
    return L2Report(
        type=settings.type,
        name=settings.name,
        store_policy=settings.store_policy,
        is_required=settings.required,
        is_paused=False,
        capacity_bytes=settings.options.get("capacity"),
        loaded_objects=0,
        dropped_saves=0,
        unsaved_evictions=0,
        tier=tier,
    )
