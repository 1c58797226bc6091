"""The metrics say what the report says."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from service.metrics import exposition
from tests.support.fake_engine import HEALTHY


def _samples(text: bytes) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, sample.labels.get("state", "")): sample.value for family in families for sample in family.samples
    }


def test_every_number_is_the_reports() -> None:
    samples = _samples(exposition(HEALTHY))
    assert samples["kvkeep_engine_ready", ""] == 1
    assert samples["kvkeep_engine_healthy", ""] == 1
    assert samples["kvkeep_workers", "ready"] == 1
    assert samples["kvkeep_workers", "unsupported"] == 1
    assert samples["kvkeep_workers", "broken"] == 0
    assert samples["kvkeep_skipped_stores_total", ""] == 12
    assert samples["kvkeep_failed_requests_total", ""] == 9
    assert samples["kvkeep_dropped_messages_total", ""] == 10
    assert samples["kvkeep_dropped_replies_total", ""] == 11
    assert samples["lmcache_mp_lookup_requested_tokens_total", ""] == (120 + 14) * 256
    assert samples["lmcache_mp_lookup_hit_tokens_total", ""] == 120 * 256
    assert samples["lmcache_mp_l1_memory_usage_bytes", ""] == 1 << 28
    assert samples["lmcache_mp_l1_usage_ratio", ""] == 0.25
    assert samples["lmcache_mp_l1_evicted_chunks_total", ""] == 6
    assert samples["kvkeep_l1_objects", "reserved"] == 1


def test_every_series_exists_before_the_engine() -> None:
    before, after = _samples(exposition(None)), _samples(exposition(HEALTHY))
    assert before.keys() == after.keys()
    assert set(before.values()) == {0.0}
