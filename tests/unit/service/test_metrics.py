"""The metrics say what the reports say, in a form that a strict reader accepts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import pytest

from engine import CheckReport, HistogramReport, LoopReport, StatusReport, TierOutcome, TransferMode, WorkerState
from service import __version__
from service.metrics.engine_series import MISS_REASONS, misses
from service.metrics.families import histogram
from tests.support.fake_engine import ADVICE, HEALTHY, L1, RECORDING, TIERS, UNHEALTHY, WITHOUT_L2
from tests.unit.service.exposition import exposition, families, http_metrics, samples, value

TOKENS = 256
ALWAYS_MOVING = ("process_", "kvkeep_build_info")
TRUE_FROM_THE_START = ("kvkeep_config_reload_success", "kvkeep_config_last_reload_timestamp_seconds")
"""The reading of the configuration at the start counts."""


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("kvkeep_engine_ready", {}, 1),
        ("kvkeep_engine_healthy", {}, 1),
        ("kvkeep_workers", {"state": "ready"}, 1),
        ("kvkeep_workers", {"state": "unsupported"}, 1),
        ("kvkeep_workers", {"state": "broken"}, 0),
        ("kvkeep_sessions", {}, 5),
        ("kvkeep_running_transfers", {}, 2),
        ("kvkeep_skipped_stores_total", {}, 12),
        ("kvkeep_failed_requests_total", {}, 9),
        ("kvkeep_dropped_messages_total", {}, 10),
        ("kvkeep_dropped_replies_total", {}, 11),
        ("kvkeep_cut_connections_total", {"reason": "queue"}, 3),
        ("kvkeep_cut_connections_total", {"reason": "unread_replies"}, 0),
        ("kvkeep_hit_tokens_total", {"tier": "l1"}, 120 * TOKENS),
        ("kvkeep_hit_tokens_total", {"tier": "l2"}, 13 * TOKENS),
        ("kvkeep_prefetched_chunks_total", {}, 13),
        ("kvkeep_lookup_duration_seconds_count", {}, 30),
        ("kvkeep_lookup_duration_seconds_sum", {}, 12.5),
        ("kvkeep_lookup_duration_seconds_bucket", {"le": "0.25"}, 20),
        ("kvkeep_lookup_duration_seconds_bucket", {"le": "1.0"}, 26),
        ("kvkeep_lookup_duration_seconds_bucket", {"le": "+Inf"}, 30),
        ("kvkeep_store_duration_seconds_count", {"mode": "lmcache_driven", "outcome": "done"}, 5),
        ("kvkeep_store_duration_seconds_count", {"mode": "engine_driven", "outcome": "failed"}, 3),
        ("kvkeep_retrieve_duration_seconds_sum", {"mode": "engine_driven", "outcome": "done"}, 7.5),
        ("kvkeep_stored_bytes_total", {"mode": "engine_driven"}, 62),
        ("kvkeep_retrieved_bytes_total", {"mode": "lmcache_driven"}, 61),
        ("kvkeep_transfers_in_progress", {"direction": "retrieve", "mode": "engine_driven"}, 2),
        ("kvkeep_cached_bytes", {"tier": "l1"}, 1 << 28),
        ("kvkeep_cached_bytes", {"tier": "l2"}, 48 << 25),
        ("kvkeep_cached_objects", {"tier": "l1"}, 8),
        ("kvkeep_cached_objects", {"tier": "l2"}, 48),
        ("kvkeep_l1_capacity_bytes", {}, 1 << 30),
        ("kvkeep_l1_objects", {"state": "ready"}, 8),
        ("kvkeep_l1_objects", {"state": "leased"}, 2),
        ("kvkeep_l1_objects", {"state": "reserved"}, 1),
        ("kvkeep_l1_stored_objects_total", {}, 15),
        ("kvkeep_l1_evicted_bytes_total", {}, 6 << 25),
        ("kvkeep_l1_refused_objects_total", {}, 3),
        ("kvkeep_l1_refusals_total", {"reason": "in_use"}, 2),
        ("kvkeep_l1_refusals_total", {"reason": "fragmented"}, 1),
        ("kvkeep_l1_refusals_total", {"reason": "quota"}, 0),
        ("kvkeep_l1_cleared_objects_total", {}, 4),
        ("kvkeep_l1_verified_objects_total", {}, 34),
        ("kvkeep_l1_corrupt_objects_total", {}, 35),
        ("lmcache_mp_lookups_requests_total", {}, 30),
        ("lmcache_mp_lookup_requested_tokens_total", {}, (120 + 14) * TOKENS),
        ("lmcache_mp_lookup_hit_tokens_total", {}, (120 + 13) * TOKENS),
        ("lmcache_mp_lookup_hit_l1_tokens_total", {}, 120 * TOKENS),
        ("lmcache_mp_lookup_hit_l2_tokens_total", {}, 13 * TOKENS),
        ("lmcache_mp_lookup_hit_l1_keys_total", {}, 240 - 26),
        ("lmcache_mp_lookup_hit_l2_keys_total", {}, 26),
        ("lmcache_mp_lookup_early_exit_requests_total", {"reason": "no_gpu_context"}, 18),
        ("lmcache_mp_lookup_early_exit_requests_total", {"reason": "empty_chunk_hashes"}, 19),
        ("lmcache_mp_num_submitted_stores_total", {}, 40),
        ("lmcache_mp_num_finished_stores_total", {}, 38),
        ("lmcache_mp_num_submitted_retrieves_total", {}, 41),
        ("lmcache_mp_num_finished_retrieves_total", {}, 39),
        ("lmcache_mp_num_chunks_loaded_total", {}, 51 + 53),
        ("lmcache_mp_l1_read_chunks_total", {}, 51 + 53),
        ("lmcache_mp_l1_write_chunks_total", {}, 15),
        ("lmcache_mp_l1_evicted_chunks_total", {}, 6),
        ("lmcache_mp_l1_allocation_failure_chunks_total", {"during": "l1_store"}, 3),
        ("lmcache_mp_l1_read_failure_chunks_total", {"during": "l1_retrieve", "reason": "not_found"}, 16),
        ("lmcache_mp_l1_read_failure_chunks_total", {"during": "l1_retrieve", "reason": "write_locked"}, 17),
        ("lmcache_mp_l1_memory_usage_bytes", {}, 1 << 28),
        ("lmcache_mp_l1_usage_ratio", {}, 0.25),
        ("lmcache_mp_l1_staging_bytes", {}, 1 << 25),
        ("lmcache_mp_l2_usage_bytes", {}, 48 << 25),
        ("lmcache_mp_l2_store_completed_objects_chunks_total", {}, 60),
        ("lmcache_mp_l2_prefetch_load_completed_chunks_total", {}, 70),
        ("lmcache_mp_l2_prefetch_lookup_objects_chunks_total", {}, 81 + 82),
        ("kvkeep_l2_up", {"tier": "nvme"}, 1),
        ("kvkeep_l2_paused", {"tier": "nvme"}, 0),
        ("kvkeep_l2_paused", {"tier": "far"}, 1),
        ("kvkeep_l2_capacity_bytes", {"tier": "nvme"}, 1 << 40),
        ("kvkeep_l2_capacity_bytes", {"tier": "far"}, 0),
        ("kvkeep_l2_used_bytes", {"tier": "nvme"}, 48 << 25),
        ("kvkeep_l2_used_bytes", {"tier": "far"}, 0),
        ("kvkeep_l2_used_objects", {"tier": "nvme"}, 48),
        ("kvkeep_l2_waiting_objects", {"tier": "nvme", "direction": "load"}, 3),
        ("kvkeep_l2_waiting_objects", {"tier": "nvme", "direction": "save"}, 5),
        ("kvkeep_l2_loads_total", {"tier": "nvme", "outcome": "done"}, 70),
        ("kvkeep_l2_loads_total", {"tier": "nvme", "outcome": "late"}, 4),
        ("kvkeep_l2_saves_total", {"tier": "nvme", "outcome": "unavailable"}, 7),
        ("kvkeep_l2_saves_total", {"tier": "far", "outcome": "done"}, 0),
        ("kvkeep_l2_loaded_bytes_total", {"tier": "nvme"}, 70 << 25),
        ("kvkeep_l2_saved_bytes_total", {"tier": "nvme"}, 60 << 25),
        ("kvkeep_l2_load_duration_seconds_count", {"tier": "nvme"}, 70),
        ("kvkeep_l2_load_duration_seconds_bucket", {"tier": "nvme", "le": "1.0"}, 68),
        ("kvkeep_l2_save_duration_seconds_sum", {"tier": "nvme"}, 31.5),
        ("kvkeep_l2_find_duration_seconds_count", {"tier": "nvme"}, 10),
        ("kvkeep_l2_find_duration_seconds_count", {"tier": "far"}, 0),
        ("kvkeep_l2_found_objects_total", {"tier": "nvme"}, 81),
        ("kvkeep_l2_absent_objects_total", {"tier": "nvme"}, 82),
        ("kvkeep_l2_dropped_saves_total", {"tier": "nvme"}, 72),
        ("kvkeep_l2_unsaved_evictions_total", {"tier": "nvme"}, 73),
        ("kvkeep_l2_retries_total", {"tier": "nvme"}, 83),
        ("kvkeep_l2_scrub_running", {"tier": "nvme"}, 1),
        ("kvkeep_l2_scrub_running", {"tier": "far"}, 0),
        ("kvkeep_l2_scrubs_total", {"tier": "nvme"}, 2),
        ("kvkeep_l2_scrubbed_objects_total", {"tier": "nvme"}, 127),
        ("kvkeep_l2_scrubbed_bytes_total", {"tier": "nvme"}, 127 << 25),
        ("kvkeep_l2_scrub_damaged_objects_total", {"tier": "nvme"}, 3),
        ("kvkeep_l2_scrub_skipped_objects_total", {"tier": "nvme"}, 5),
        ("lmcache_mp_active_prefetch_jobs", {}, 1),
    ],
)
def test_every_number_is_the_reports(name: str, labels: dict[str, str], expected: float) -> None:
    assert value(exposition(HEALTHY), name, **labels) == expected


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("kvkeep_advisor_hit_ratio", {"policy": "lru", "factor": "1"}, 0.1725),
        ("kvkeep_advisor_hit_ratio", {"policy": "fifo", "factor": "0.25"}, 0.115625),
        ("kvkeep_advisor_hit_ratio", {"policy": "hit_density", "factor": "8"}, 0),
        ("kvkeep_advisor_references_total", {}, 301_220),
        ("kvkeep_advisor_dropped_references_total", {}, 17),
        ("kvkeep_advisor_sampled_references", {}, 37_351),
        ("kvkeep_recording", {}, 1),
        ("kvkeep_recording_lines", {}, 5120),
        ("kvkeep_recording_dropped", {}, 3),
    ],
)
def test_the_advisor_and_the_recorder_are_there(name: str, labels: dict[str, str], expected: float) -> None:
    assert value(exposition(HEALTHY, advisor=ADVICE, recording=RECORDING), name, **labels) == pytest.approx(expected)


def test_ill_is_not_healthy_and_yet_ready() -> None:
    text_ = exposition(UNHEALTHY)
    assert (value(text_, "kvkeep_engine_ready"), value(text_, "kvkeep_engine_healthy")) == (1, 0)


def test_it_says_what_runs() -> None:
    [sample] = families(exposition(None))["kvkeep_build_info"].samples
    assert (sample.labels["version"], sample.labels["lmcache_protocol"], sample.value) == (__version__, "0.5", 1)
    assert re.fullmatch(r"3\.\d+\.\d+\S*", sample.labels["python"])


def test_the_process_is_measured() -> None:
    assert value(exposition(None), "process_resident_memory_bytes") > 1 << 20
    assert value(exposition(None), "process_start_time_seconds") > 1e9


@pytest.mark.parametrize("report", [None, HEALTHY, UNHEALTHY], ids=["none", "healthy", "unhealthy"])
def test_a_strict_reader_accepts_it(report: StatusReport | None) -> None:
    found = families(
        exposition(
            report,
            advisor=ADVICE,
            recording=RECORDING,
            loops=[LoopReport("engine", 0.5, 2)],
            checks=[CheckReport("socket", True, None, 0.001, 0.1, "liveness")],
        )
    )
    for name, family in found.items():
        assert re.fullmatch(r"(kvkeep|lmcache_mp|process)_[a-z0-9_]+", name)
        assert family.documentation.endswith("."), name
        assert family.samples, name
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples), name


def test_every_series_exists_before_the_engine() -> None:
    """The fake engine's histograms have bounds of their own, so those are not compared here."""
    before, after = samples(exposition(None, tiers=TIERS)), samples(exposition(HEALTHY, tiers=TIERS))
    assert {key for key in before if "le" not in dict(key[1])} == {key for key in after if "le" not in dict(key[1])}
    assert {
        found for (name, _), found in before.items() if not name.startswith((*ALWAYS_MOVING, *TRUE_FROM_THE_START))
    } == {0.0}


def test_a_server_without_l2_has_the_sums_only() -> None:
    found = samples(exposition(WITHOUT_L2))
    assert not [name for name, _ in found if name.startswith("kvkeep_l2_")]
    assert value(exposition(WITHOUT_L2), "lmcache_mp_l2_usage_bytes") == 0


def test_a_failing_tier_is_down() -> None:
    assert value(exposition(UNHEALTHY, tiers=TIERS), "kvkeep_l2_up", tier="nvme") == 0
    assert value(exposition(None, tiers=TIERS), "kvkeep_check_ok", check="l2:nvme") == 0


class TestLabelSets:
    def of(self, name: str) -> set[tuple[str, ...]]:
        return {tuple(sample.labels.values()) for sample in families(exposition(HEALTHY))[name].samples}

    def test_every_state_of_a_worker(self) -> None:
        assert self.of("kvkeep_workers") == {(state,) for state in get_args(WorkerState)}

    def test_every_mode(self) -> None:
        assert self.of("kvkeep_stored_bytes") == {(mode,) for mode in get_args(TransferMode)}

    def test_every_outcome_of_every_tier(self) -> None:
        expected = {(outcome, tier.name) for tier in TIERS for outcome in get_args(TierOutcome)}
        assert self.of("kvkeep_l2_loads") == self.of("kvkeep_l2_saves") == expected

    def test_every_reason_of_a_miss(self) -> None:
        assert self.of("kvkeep_lookup_misses") == {(reason,) for reason in MISS_REASONS}


def test_misses_are_told_by_reason() -> None:
    family = misses((("evicted", 3), ("cleared", 1)))
    counts = {sample.labels["reason"]: sample.value for sample in family.samples}
    assert counts == {**dict.fromkeys(MISS_REASONS, 0), "evicted": 3, "cleared": 1}
    assert value(exposition(HEALTHY), "kvkeep_lookup_misses_total", reason="evicted") == 2


LOOP_METRICS = ("beat_age_seconds", "running", "exceptions_total", "restarts_total")


def test_loops_and_checks_are_told_by_name() -> None:
    found = exposition(
        None,
        loops=[
            LoopReport("engine", 0.5, 2),
            LoopReport("transfer", 7.25, 0),
            LoopReport("l2-my-nvme-keeper", 0.0, 1, 1),
            LoopReport("l2-my-nvme-r10", 0.5, 2, 3, "restarting"),
            LoopReport("waitress", 0.1, 0),
            LoopReport("waitress-0", 0.2, 0, 1),
        ],
        checks=[CheckReport("ping", False, "no answer", None, 0.1, "liveness")],
    )
    assert value(found, "kvkeep_loop_beat_age_seconds", loop="transfer") == 7.25
    assert value(found, "kvkeep_loop_restarts_total", loop="engine") == 2
    tier = {name: value(found, f"kvkeep_loop_{name}", loop="l2-my-nvme") for name in LOOP_METRICS}
    assert tier == {"beat_age_seconds": 0.5, "running": 0, "exceptions_total": 4, "restarts_total": 3}
    http = {name: value(found, f"kvkeep_loop_{name}", loop="waitress") for name in LOOP_METRICS}
    assert http == {"beat_age_seconds": 0.2, "running": 1, "exceptions_total": 1, "restarts_total": 0}
    assert value(found, "kvkeep_loop_running", loop="advisor") == 0
    assert value(found, "kvkeep_check_ok", check="ping") == 0
    assert value(found, "kvkeep_check_latency_seconds", check="ping") == 0


def test_http_requests_are_told_by_operation_and_status() -> None:
    http = http_metrics()
    for operation, status, seconds in (("getStatus", 200, 0.002), ("getStatus", 503, 20.0), ("unmatched", 404, 0.0)):
        http.begin()
        http.end(operation, status, seconds)
    http.begin()
    found = exposition(None, http)
    assert value(found, "kvkeep_http_requests_total", operation="getStatus", status="503") == 1
    assert value(found, "kvkeep_http_requests_total", operation="unmatched", status="404") == 1
    assert value(found, "kvkeep_http_requests_total", operation="getRoot", status="200") == 0
    assert value(found, "kvkeep_http_request_duration_seconds_count", operation="getStatus") == 2
    assert value(found, "kvkeep_http_request_duration_seconds_bucket", operation="getStatus", le="0.0025") == 1
    assert value(found, "kvkeep_http_request_duration_seconds_bucket", operation="getStatus", le="10.0") == 1
    assert value(found, "kvkeep_http_request_duration_seconds_sum", operation="getStatus") == 20.002
    assert value(found, "kvkeep_http_requests_in_flight") == 1
    assert samples(exposition(None)).keys() == samples(found).keys()


def test_no_memory_is_not_used() -> None:
    empty = replace(HEALTHY, l1=replace(L1, memory_total_bytes=0, memory_used_bytes=0))
    assert value(exposition(empty), "lmcache_mp_l1_usage_ratio") == 0


def test_a_histogram_counts_all_that_does_not_pass_a_bound() -> None:
    family = histogram("a_seconds", "Words.", HistogramReport((0.5, 1.0), (2, 0, 3), 12.25))
    buckets = [(each.labels["le"], each.value) for each in family.samples if each.name == "a_seconds_bucket"]
    assert buckets == [("0.5", 2), ("1.0", 2), ("+Inf", 5)]
    assert {each.name: each.value for each in family.samples if not each.labels} == {
        "a_seconds_count": 5,
        "a_seconds_sum": 12.25,
    }
