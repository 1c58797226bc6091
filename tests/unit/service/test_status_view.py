"""Every number of the report has its place in the body."""

from __future__ import annotations

from dataclasses import asdict, replace

from service.status_view import status_body
from tests.support.fake_engine import ENGINE_COPIES, HEALTHY, L1, LARGE_ID, SERVER_COPIES, UNHEALTHY


def test_the_body_says_what_the_report_says() -> None:
    body = status_body(HEALTHY)
    meta = body.pop("gpu_context_meta")
    assert body.pop("cache_context_meta") is meta
    storage = body.pop("storage_manager")
    assert body == {
        "is_healthy": True,
        "problems": [],
        "engine_type": "MPCacheEngine",
        "chunk_size": 256,
        "hash_algorithm": "blake3",
        "registered_gpu_ids": [LARGE_ID, 7],
        "active_sessions": 5,
        "active_prefetch_jobs": 1,
        "running_transfers": 2,
        "skipped_stores": 12,
        "failed_requests": 9,
        "dropped_messages": 10,
        "dropped_replies": 11,
    }
    assert storage == {
        "is_healthy": True,
        "l1_manager": {
            "memory_total_bytes": 1 << 30,
            "memory_used_bytes": 1 << 28,
            "memory_usage_ratio": 0.25,
            "total_object_count": 8,
            "leased_object_count": 2,
            "reserved_object_count": 1,
            "hits": 120,
            "misses": 14,
            "stores": 15,
            "evictions": 6,
            "evicted_bytes": 6 << 25,
            "refusals": 3,
            "cleared": 4,
        },
        "eviction_controller": {"eviction_policy": "lru"},
        "l2_adapters": [],
    }


def test_workers_of_both_modes_are_listed_with_null_for_what_a_mode_does_not_know() -> None:
    meta = status_body(HEALTHY)["gpu_context_meta"]
    assert list(meta) == [str(LARGE_ID), "7"]
    layout = meta[str(LARGE_ID)]["kv_cache_layout"]
    assert layout == {**asdict(SERVER_COPIES.layout), "kernel_groups": layout["kernel_groups"]}
    assert layout["kernel_groups"] == [asdict(group) for group in SERVER_COPIES.layout.kernel_groups]
    assert meta["7"] == {
        "model_name": "/models/deepseek",
        "world_size": 1,
        "device": None,
        "transfer_mode": "engine_driven",
        "state": "unsupported",
        "problem": "a group has a sliding window",
        "kv_cache_layout": {**asdict(ENGINE_COPIES.layout), "kernel_groups": []},
    }


def test_storage_is_healthy_when_every_level_is() -> None:
    storage = status_body(UNHEALTHY)["storage_manager"]
    assert storage["is_healthy"] is False
    assert storage["l2_adapters"] == [{"type": "fs", "is_healthy": False}, {"type": "redis", "is_healthy": True}]


def test_no_memory_is_not_used() -> None:
    empty = replace(HEALTHY, l1=replace(L1, memory_total_bytes=0, memory_used_bytes=0))
    assert status_body(empty)["storage_manager"]["l1_manager"]["memory_usage_ratio"] == 0.0
