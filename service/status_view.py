"""The status report as the API shows it. Pure; the field names are the contract."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from engine import KernelGroupReport, L1Report, LayoutReport, StatusReport, WorkerReport
from service.tier_view import tier_body

ENGINE_TYPE = "MPCacheEngine"

_LAYOUT_FIELDS = tuple(field.name for field in fields(LayoutReport) if field.name != "kernel_groups")
_GROUP_FIELDS = tuple(field.name for field in fields(KernelGroupReport))


def status_body(report: StatusReport) -> dict[str, Any]:
    """The body of getStatus."""
    meta = {str(worker.instance_id): _worker(worker) for worker in report.workers}
    return {
        "is_healthy": report.is_healthy,
        "problems": list(report.problems),
        "engine_type": ENGINE_TYPE,
        "chunk_size": report.chunk_size,
        "hash_algorithm": report.hash_algorithm,
        "registered_gpu_ids": [worker.instance_id for worker in report.workers],
        "gpu_context_meta": meta,
        "cache_context_meta": meta,
        "active_sessions": report.active_sessions,
        "active_prefetch_jobs": report.active_prefetch_jobs,
        "running_transfers": report.running_transfers,
        "skipped_stores": report.skipped_stores,
        "failed_requests": report.failed_requests,
        "dropped_messages": report.dropped_messages,
        "dropped_replies": report.dropped_replies,
        "cut_connections": dict(report.cut_connections),
        "storage_manager": _storage(report),
    }


def _worker(worker: WorkerReport) -> dict[str, Any]:
    return {
        "model_name": worker.model_name,
        "world_size": worker.world_size,
        "device": worker.device,
        "transfer_mode": worker.transfer_mode,
        "state": worker.state,
        "problem": worker.problem,
        "kv_cache_layout": _layout(worker.layout),
    }


def _layout(layout: LayoutReport) -> dict[str, Any]:
    # PERF: dataclasses.asdict copies deeply, which takes ten times as long.
    groups = [{name: getattr(group, name) for name in _GROUP_FIELDS} for group in layout.kernel_groups]
    return {**{name: getattr(layout, name) for name in _LAYOUT_FIELDS}, "kernel_groups": groups}


def _storage(report: StatusReport) -> dict[str, Any]:
    return {
        "is_healthy": all(adapter.is_healthy for adapter in report.l2),
        "l1_manager": _l1(report.l1),
        "eviction_controller": {"eviction_policy": report.eviction_policy},
        "prefetched_chunks": report.lookups.prefetched_chunks,
        "l2_adapters": [tier_body(adapter) for adapter in report.l2],
    }


def _l1(l1: L1Report) -> dict[str, Any]:
    return {
        "memory_total_bytes": l1.memory_total_bytes,
        "memory_used_bytes": l1.memory_used_bytes,
        "memory_usage_ratio": l1.memory_used_bytes / l1.memory_total_bytes if l1.memory_total_bytes else 0.0,
        "total_object_count": l1.total_object_count,
        "leased_object_count": l1.leased_object_count,
        "reserved_object_count": l1.reserved_object_count,
        "hits": l1.hit_chunks,
        "misses": l1.missed_chunks,
        "stores": l1.stored_objects,
        "evictions": l1.evicted_objects,
        "evicted_bytes": l1.evicted_bytes,
        "refusals": l1.refused_objects,
        "cleared": l1.cleared_objects,
        "verified": l1.verified_objects,
        "corrupt": l1.corrupt_objects,
    }
