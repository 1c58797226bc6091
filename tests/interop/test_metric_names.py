"""Dashboards made for the LMCache server find its metrics at kvkeep: the same names, the same types."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.interop.client import ENGINE_COPIES, SERVER_COPIES, Engine, fresh, prompt
from tests.support.polling import until
from tests.support.server import ROOT, ServerProcess

CHUNKS = 4


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """Types by name. A counter's name is without `_total` here, as the client library has it."""
    command = [sys.executable, "-m", "tests.interop.exported"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def scraped(server: ServerProcess) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.http_url + "/metrics", timeout=10) as answer:
        return bytes(answer.read()).decode()


def values(server: ServerProcess) -> dict[str, float]:
    """The sum over all series of each name."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(scraped(server)):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_what_has_a_name_of_lmcache_is_a_metric_of_lmcache(server: ServerProcess, reference: dict[str, str]) -> None:
    ours = {
        family.name: family.type
        for family in text_string_to_metric_families(scraped(server))
        if family.name.startswith("lmcache")
    }
    assert len(ours) > 20
    assert ours.items() <= reference.items()


@pytest.mark.parametrize(("mode", "copied"), [(SERVER_COPIES, 1), (ENGINE_COPIES, 0)])
def test_it_counts_what_lmcache_counts(server: ServerProcess, make_engine, mode: str, copied: int) -> None:
    """As the reference server counts it: copies only where the server makes them, chunks in either mode."""
    before = values(server)
    engine: Engine = make_engine(mode)
    tokens, blocks = prompt(CHUNKS * engine.chunk), engine.blocks(CHUNKS)
    assert engine.worker.store(fresh("request"), tokens, blocks)
    request = fresh("request")
    assert engine.scheduler.lookup(request, [*tokens, *prompt(engine.chunk)]) == len(tokens)
    assert engine.worker.retrieve(request, tokens, blocks)
    engine.scheduler.end(request)
    expected = {
        "lmcache_mp_lookups_requests_total": 1,
        "lmcache_mp_lookup_requested_tokens_total": len(tokens) + engine.chunk,
        "lmcache_mp_lookup_hit_tokens_total": len(tokens),
        "lmcache_mp_lookup_hit_l1_tokens_total": len(tokens),
        "lmcache_mp_lookup_hit_l1_keys_total": CHUNKS,
        "lmcache_mp_l1_write_chunks_total": CHUNKS,
        "lmcache_mp_l1_read_chunks_total": CHUNKS,
        "lmcache_mp_num_submitted_stores_total": copied,
        "lmcache_mp_num_finished_stores_total": copied,
        "lmcache_mp_num_submitted_retrieves_total": copied,
        "lmcache_mp_num_finished_retrieves_total": copied,
    }

    def grown() -> dict[str, float]:
        now = values(server)
        return {name: now[name] - before[name] for name in expected}

    until(lambda: grown() == expected, f"{expected}, not {grown()}", 5)
