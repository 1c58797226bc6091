"""The engine's report as metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, get_args

from prometheus_client.core import Metric

from engine import (
    EMPTY_REPORT,
    CutReason,
    L1Report,
    L2Report,
    LookupReport,
    MissReason,
    StatusReport,
    TransferReport,
    WorkerState,
)
from service.metrics.families import counter, counters, gauge, gauges, histogram, histograms

MISS_REASONS: Final = tuple(reason for reason in get_args(MissReason) if reason != "chunk_incomplete")
"""Why a lookup found no more than it did; it asks for complete chunks only."""


def engine_series(report: StatusReport | None, tiers: Sequence[L2Report]) -> Iterator[Metric]:
    """Everything of the report, and of the tiers what they are in sum; None stands for an engine that is not there."""
    yield gauge("kvkeep_engine_ready", "1 once the engine serves requests.", report is not None)
    report = report or EMPTY_REPORT
    yield gauge("kvkeep_engine_healthy", "1 while the engine has no problem to report.", report.is_healthy)
    yield _workers(report)
    yield gauge("kvkeep_sessions", "Requests whose lookup is remembered.", report.active_sessions)
    yield gauge("kvkeep_running_transfers", "Copies that are queued or under way.", report.running_transfers)
    yield counter("kvkeep_skipped_stores_total", "Stores of unsupported workers, skipped.", report.skipped_stores)
    yield counter("kvkeep_failed_requests_total", "Requests answered with their failure value.", report.failed_requests)
    yield counter("kvkeep_dropped_messages_total", "Messages that cannot be answered.", report.dropped_messages)
    yield counter("kvkeep_dropped_replies_total", "Replies whose client had vanished.", report.dropped_replies)
    yield _cut_connections(report)
    yield gauge("lmcache_mp_active_prefetch_jobs", "Lookups that wait for L2.", report.active_prefetch_jobs)
    yield from _lookups(report.lookups, report.l1, report.chunk_size)
    yield from _transfers(report.transfers)
    yield from _tiers(report.l1, tiers)
    yield from _l1(report.l1)
    yield misses(report.l1.missed_lookups)


def misses(by_reason: Sequence[tuple[str, int]]) -> Metric:
    """Lookups that did not find everything, by the reason of their first missing chunk."""
    counts = {**dict.fromkeys(MISS_REASONS, 0), **dict(by_reason)}
    description = "Lookups that did not find all chunks, by why the first of them was missing."
    return counters("kvkeep_lookup_misses_total", description, ["reason"], (([name], n) for name, n in counts.items()))


def _cut_connections(report: StatusReport) -> Metric:
    counts = {**dict.fromkeys(get_args(CutReason), 0), **dict(report.cut_connections)}
    series = (([reason], count) for reason, count in counts.items())
    return counters("kvkeep_cut_connections_total", "Clients' connections that were cut off.", ["reason"], series)


def _workers(report: StatusReport) -> Metric:
    states = [worker.state for worker in report.workers]
    series = (([state], states.count(state)) for state in get_args(WorkerState))
    return gauges("kvkeep_workers", "Registered workers by state.", ["state"], series)


def _lookups(lookups: LookupReport, l1: L1Report, chunk_size: int) -> Iterator[Metric]:
    asked, in_l1 = (l1.hit_chunks + l1.missed_chunks) * chunk_size, l1.hit_chunks * chunk_size
    from_l2 = lookups.prefetched_chunks * chunk_size
    yield histogram("kvkeep_lookup_duration_seconds", "Time of the engine thread for a lookup.", lookups.seconds)
    yield counters(
        "kvkeep_hit_tokens_total", "Tokens that lookups found, by tier.", ["tier"], [(["l1"], in_l1), (["l2"], from_l2)]
    )
    yield counter("lmcache_mp_lookups_requests_total", "Lookups answered with a result.", lookups.requests)
    yield counter(
        "lmcache_mp_lookup_requested_tokens_total", "Tokens of complete chunks that lookups asked for.", asked
    )
    yield counter(
        "kvkeep_prefetched_chunks_total", "Chunks that L2 has added to what L1 had.", lookups.prefetched_chunks
    )
    yield counter("lmcache_mp_lookup_hit_tokens_total", "Tokens that lookups found.", in_l1 + from_l2)
    yield counter("lmcache_mp_lookup_hit_l1_tokens_total", "Tokens that lookups found in L1.", in_l1)
    yield counter(
        "lmcache_mp_lookup_hit_l2_tokens_total", "Tokens that lookups found in L2 beyond those in L1.", from_l2
    )
    yield counter(
        "lmcache_mp_lookup_hit_l1_keys_total",
        "Objects that lookups found in L1, one for each chunk, shard and layout.",
        lookups.hit_objects - lookups.prefetched_objects,
    )
    yield counter(
        "lmcache_mp_lookup_hit_l2_keys_total", "Objects that lookups loaded from L2.", lookups.prefetched_objects
    )
    yield counters(
        "lmcache_mp_lookup_early_exit_requests_total",
        "Lookups that looked for nothing: no worker of the model can be served, or the prompt has no complete chunk.",
        ["reason"],
        [(["no_gpu_context"], lookups.without_workers), (["empty_chunk_hashes"], lookups.without_chunks)],
    )


def _transfers(transfers: Sequence[TransferReport]) -> Iterator[Metric]:
    for direction, past in (("store", "stored"), ("retrieve", "retrieved")):
        ones = [each for each in transfers if each.direction == direction]
        yield histograms(
            f"kvkeep_{direction}_duration_seconds",
            f"Time from the arrival of a {direction} to its reply, by who copies and by outcome.",
            ["mode", "outcome"],
            [
                ([each.mode, outcome], seconds)
                for each in ones
                for outcome, seconds in (("done", each.done), ("failed", each.failed))
            ],
        )
        yield counters(
            f"kvkeep_{past}_bytes_total",
            f"Bytes {past}, by who copies.",
            ["mode"],
            [([each.mode], each.bytes) for each in ones],
        )
    yield gauges(
        "kvkeep_transfers_in_progress",
        "Stores and retrieves whose bytes are to be moved or are being moved, by who copies.",
        ["direction", "mode"],
        [([each.direction, each.mode], each.begun - each.ended) for each in transfers],
    )
    yield from _server_copies([each for each in transfers if each.mode == "lmcache_driven"])
    retrieved = sum(each.objects for each in transfers if each.direction == "retrieve")
    yield counter("lmcache_mp_num_chunks_loaded_total", "Objects loaded into engines.", retrieved)
    yield counter("lmcache_mp_l1_read_chunks_total", "Objects read from L1.", retrieved)


def _server_copies(transfers: Sequence[TransferReport]) -> Iterator[Metric]:
    for each in transfers:
        what = f"{each.direction}s that the server copies"
        yield counter(f"lmcache_mp_num_submitted_{each.direction}s_total", f"Begun {what}.", each.begun)
        yield counter(f"lmcache_mp_num_finished_{each.direction}s_total", f"Ended {what}, well or not.", each.ended)


def _tiers(l1: L1Report, tiers: Sequence[L2Report]) -> Iterator[Metric]:
    yield gauges(
        "kvkeep_cached_bytes",
        "Bytes occupied, by tier.",
        ["tier"],
        [(["l1"], l1.memory_used_bytes), (["l2"], sum(each.tier.used_bytes or 0 for each in tiers))],
    )
    yield gauges(
        "kvkeep_cached_objects",
        "Objects that can be found, by tier.",
        ["tier"],
        [(["l1"], l1.total_object_count), (["l2"], sum(each.tier.used_objects or 0 for each in tiers))],
    )


def _l1(l1: L1Report) -> Iterator[Metric]:
    ratio = l1.memory_used_bytes / l1.memory_total_bytes if l1.memory_total_bytes else 0.0
    yield gauge("lmcache_mp_l1_memory_usage_bytes", "Bytes occupied in L1.", l1.memory_used_bytes)
    yield gauge("lmcache_mp_l1_usage_ratio", "Occupied part of L1, 0 to 1.", ratio)
    yield gauge("lmcache_mp_l1_staging_bytes", "Bytes of objects that are being written.", l1.reserved_bytes)
    yield counter("lmcache_mp_l1_write_chunks_total", "Objects written to L1.", l1.stored_objects)
    yield counter("lmcache_mp_l1_evicted_chunks_total", "Objects evicted from L1.", l1.evicted_objects)
    yield counters(
        "lmcache_mp_l1_allocation_failure_chunks_total",
        "Objects for which no room could be made in L1.",
        ["during"],
        [(["l1_store"], l1.refused_objects)],
    )
    yield counters(
        "lmcache_mp_l1_read_failure_chunks_total",
        "Objects that a retrieve wanted and did not get: not there, or still being written.",
        ["during", "reason"],
        [(["l1_retrieve", "not_found"], l1.absent_reads), (["l1_retrieve", "write_locked"], l1.unready_reads)],
    )
    yield gauge("kvkeep_l1_capacity_bytes", "Bytes of L1.", l1.memory_total_bytes)
    yield gauges(
        "kvkeep_l1_objects",
        "Objects in L1: to be found, leased, being written.",
        ["state"],
        [
            (["ready"], l1.total_object_count),
            (["leased"], l1.leased_object_count),
            (["reserved"], l1.reserved_object_count),
        ],
    )
    yield counter("kvkeep_l1_stored_objects_total", "Objects stored in L1.", l1.stored_objects)
    yield counter("kvkeep_l1_evicted_bytes_total", "Bytes evicted from L1.", l1.evicted_bytes)
    yield counter("kvkeep_l1_refused_objects_total", "Objects for which no room could be made.", l1.refused_objects)
    yield counters(
        "kvkeep_l1_refusals_total",
        "Objects for which no room could be made: too much in use, no contiguous range, or the quota of their salt.",
        ["reason"],
        [([reason], count) for reason, count in l1.refusals],
    )
    yield counter("kvkeep_l1_cleared_objects_total", "Objects that clears made invisible.", l1.cleared_objects)
    yield counter(
        "kvkeep_l1_verified_objects_total",
        "How often an object was held against its checksum before its bytes were used.",
        l1.verified_objects,
    )
    yield counter("kvkeep_l1_corrupt_objects_total", "How often it was not what was stored.", l1.corrupt_objects)
