"""The metrics of a real server: the same series before it is ready, then, and after it was used."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from tests.contract.test_process import Spawned
from tests.support.polling import until
from tests.support.server import ServerProcess
from tests.unit.service.exposition import Key, samples, value


def scraped(server: ServerProcess) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.http_url + "/metrics", timeout=10) as answer:
        return bytes(answer.read()).decode()


def is_ready(server: ServerProcess) -> bool:
    return value(scraped(server), "kvkeep_engine_ready") == 1


def series(server: ServerProcess) -> set[Key]:
    return set(samples(scraped(server)))


def test_every_series_is_there_from_the_start_and_none_comes_later(tmp_path: Path) -> None:
    file = tmp_path / "kvkeep.yaml"
    file.write_text("l2: [{type: memory, required: true}, {type: filesystem, path: kv, keep_free: 0}]\n")
    with Spawned("--l1-size-gb", "2", "--config", str(file)) as server:
        until(lambda: server._answers("/"), "the first answer")
        first = scraped(server)
        assert value(first, "kvkeep_engine_ready") == value(first, "kvkeep_l2_up", tier="memory") == 0
        until(lambda: is_ready(server), "the engine is ready")
        assert series(server) == set(samples(first))
        server.get("/api/status")
        server.post("/api/clear-cache")
        server.get("/no/such/path")
        server.post("/api/clear-cache", b"x" * (2 << 20))

        def counted() -> bool:
            return value(scraped(server), "kvkeep_http_requests_total", operation="clearCache", status="413") == 1

        until(counted, "all of it is counted", 5)
        assert series(server) == set(samples(first))


def test_the_threads_of_a_running_engine_are_fresh_and_its_checks_pass(server: ServerProcess) -> None:
    until(lambda: value(scraped(server), "kvkeep_check_ok", check="socket") == 1, "the first ping came back", 5)
    text = scraped(server)
    for check in ("engine", "transfer", "loops", "monitor"):
        assert value(text, "kvkeep_check_ok", check=check) == 1
    for loop in ("engine", "transfer", "monitor"):
        assert value(text, "kvkeep_loop_beat_age_seconds", loop=loop) < 3
    assert value(text, "kvkeep_l1_capacity_bytes") == 1 << 28
