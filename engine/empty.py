"""The report of an engine that is not there: every number is 0, and nothing is left out. Pure."""

from __future__ import annotations

from typing import Final, get_args

from engine.histogram import Histogram
from engine.meters import LOOKUP_BOUNDS, Meters
from engine.status import L1Report, LookupReport, RefusalReason, StatusReport

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
    ),
    l2=(),
)
