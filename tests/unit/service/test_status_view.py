"""Every number of the report has its place in the body."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import get_args

import pytest

from engine import TierOutcome
from service.status_view import status_body
from service.tier_view import stored_in, tier_body
from tests.support.fake_engine import ENGINE_COPIES, FAR, HEALTHY, L1, LARGE_ID, NVME, SERVER_COPIES, UNHEALTHY


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
        "cut_connections": {"queue": 3, "frames": 1},
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
            "verified": 34,
            "corrupt": 35,
        },
        "eviction_controller": {"eviction_policy": "lru"},
        "prefetched_chunks": 13,
        "l2_adapters": [tier_body(NVME), tier_body(FAR)],
    }


def test_a_tier_shows_everything_of_its_report() -> None:
    assert tier_body(NVME) == {
        "name": "nvme",
        "type": "filesystem",
        "is_healthy": True,
        "state": "open",
        "problem": None,
        "is_paused": False,
        "is_required": True,
        "store_policy": "write_back",
        "capacity_bytes": 1 << 40,
        "used_bytes": 48 << 25,
        "used_objects": 48,
        "waiting_loads": 3,
        "waiting_saves": 5,
        "loaded_objects": 71,
        "loaded_bytes": 70 << 25,
        "saved_objects": 60,
        "saved_bytes": 60 << 25,
        "loads": dict.fromkeys(get_args(TierOutcome), 0) | {"done": 70, "absent": 2, "damaged": 1, "late": 4},
        "saves": dict.fromkeys(get_args(TierOutcome), 0) | {"done": 60, "unavailable": 7, "full": 5, "busy": 6},
        "dropped_saves": 72,
        "unsaved_evictions": 73,
        "found_objects": 81,
        "absent_objects": 82,
        "retries": 83,
        "work": "rescan",
        "work_done": 17,
        "scrub": {
            "is_running": True,
            "held_by": "loads",
            "begun_age_seconds": 90,
            "ended_age_seconds": 604_890,
            "passes": 2,
            "objects": 31,
            "bytes": 31 << 25,
            "damaged": 1,
            "skipped": 4,
        },
    }


@pytest.mark.parametrize(
    ("reports", "expected"),
    [((), (0, 0)), ((NVME, NVME), (96, 96 << 25)), ((NVME, FAR), (None, None))],
    ids=["none", "two", "one does not tell"],
)
def test_what_is_stored_is_the_sum_where_every_tier_tells(reports, expected: tuple[int | None, int | None]) -> None:
    assert stored_in(report.tier for report in reports) == dict(zip(("objects", "bytes"), expected, strict=True))


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
    nvme, far = storage["l2_adapters"]
    assert (nvme["is_healthy"], nvme["state"], nvme["problem"]) == (False, "failing", "nvme (reading): no such folder")
    assert (far["is_healthy"], far["is_paused"], far["used_bytes"]) == (True, True, None)


def test_no_memory_is_not_used() -> None:
    empty = replace(HEALTHY, l1=replace(L1, memory_total_bytes=0, memory_used_bytes=0))
    assert status_body(empty)["storage_manager"]["l1_manager"]["memory_usage_ratio"] == 0.0
