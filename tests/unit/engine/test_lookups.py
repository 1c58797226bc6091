"""Lookups: how much of a prompt is there, and that it stays until it was used."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine import Liveness
from engine.events import Probe
from engine.wire import messages as m
from tests.unit.engine.driver import Driver
from tests.unit.engine.support import cpu_tensor, key, packed, register_engine_driven

TOKENS = list(range(48))
"""Three chunks."""


@pytest.fixture
def driver() -> Driver:
    made = Driver()
    made.connected = True
    made.register()
    made.store(TOKENS)
    return made


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        pytest.param(TOKENS, 3, id="all"),
        pytest.param([*TOKENS, *range(900, 950)], 3, id="a longer prompt"),
        pytest.param(TOKENS[:40], 2, id="complete chunks only"),
        pytest.param(TOKENS[:15], 0, id="less than a chunk"),
        pytest.param([], 0, id="nothing"),
        pytest.param([*TOKENS[:20], 999, *TOKENS[21:]], 1, id="another token in the second chunk"),
        pytest.param([999, *TOKENS[1:]], 0, id="another token in the first chunk"),
        pytest.param(TOKENS[16:], 0, id="without the first chunk"),
    ],
)
def test_the_leading_chunks_that_are_there_are_found(driver: Driver, tokens: list[int], found: int) -> None:
    assert driver.lookup(tokens) == found
    assert driver.leased == found


def test_the_answer_is_given_once(driver: Driver) -> None:
    assert driver.lookup(TOKENS) == 3
    assert driver.ask(m.QueryPrefetchStatus("r")) == 0
    assert driver.ask(m.WaitPrefetchStatus("r", 1.0)) == 0


def test_waiting_for_the_answer_gets_it_at_once(driver: Driver) -> None:
    driver.ask(m.Lookup(key(TOKENS), packed(1)))
    assert driver.ask(m.WaitPrefetchStatus("r", 9.0)) == 3


def test_an_answer_belongs_to_the_connection_that_asked(driver: Driver) -> None:
    driver.ask(m.Lookup(key(TOKENS), packed(1)), client=b"1")
    assert driver.ask(m.QueryPrefetchStatus("r"), client=b"2") == 0
    assert driver.ask(m.QueryPrefetchStatus("r"), client=b"1") == 3


@pytest.mark.parametrize(
    "changes",
    [{"model_name": "other"}, {"world_size": 2}, {"cache_salt": "s"}, {"cache_salt": "a@b"}, {"num_kv_readers": -1}],
    ids=str,
)
def test_what_is_not_this_models_own_is_not_found(driver: Driver, changes: dict[str, Any]) -> None:
    assert driver.lookup(TOKENS, **changes) == 0
    assert driver.leased == 0


@pytest.mark.parametrize("tokens", [None, "x", {}, ["x"] * 48, [*range(100, 147), None]])
def test_tokens_that_are_none_are_answered_with_nothing_found(driver: Driver, tokens: object) -> None:
    bad = msgspec.structs.replace(key(TOKENS), token_ids=msgspec.Raw(packed(tokens)))
    assert driver.ask(m.Lookup(bad, packed(1))) is None
    assert driver.ask(m.QueryPrefetchStatus("r")) == 0
    assert driver.ask(m.FreeLookupLocks(bad, packed(1))) is None


def test_every_shard_must_have_a_chunk() -> None:
    driver = Driver()
    for shard in range(2):
        driver.register(shard, world_size=2)
    driver.store(TOKENS, 0, worker_id=0, world_size=2)
    assert driver.lookup(TOKENS, world_size=2) == 0
    driver.store(TOKENS[:16], 1, worker_id=1, world_size=2)
    assert driver.lookup(TOKENS, world_size=2) == 1
    assert driver.leased == 2


def test_every_layout_of_a_model_must_have_a_chunk(driver: Driver) -> None:
    driver.register(2, [cpu_tensor([9, 2, 8, 16])])
    assert driver.lookup(TOKENS) == 0
    driver.store(TOKENS[:16], 2)
    assert driver.lookup(TOKENS) == 1
    assert driver.leased == 2
    driver.ask(m.UnregisterKVCache(2))
    assert driver.lookup(TOKENS) == 3


def test_both_modes_of_a_model_never_share_a_chunk(driver: Driver) -> None:
    driver.ask(register_engine_driven(2))
    assert driver.lookup(TOKENS) == 0


def test_schedulers_with_a_request_of_the_same_name_keep_what_each_was_promised(driver: Driver) -> None:
    """A worker does not say whose request it retrieves for."""
    for client in (b"1", b"2"):
        assert driver.lookup(TOKENS, client=client) == 3
    driver.ask(m.Clear(True))
    for _ in range(2):
        assert driver.retrieve(TOKENS) == [b"", True]
        assert driver.leased == 3
    for client in (b"1", b"2"):
        driver.end(client=client)
    assert driver.cache.used == 0


def test_what_was_found_cannot_be_evicted_until_it_was_used() -> None:
    driver = Driver(slots=3)
    driver.register()
    driver.store(TOKENS)
    assert driver.lookup(TOKENS, request_id="waiting") == 3
    assert driver.store(range(100, 148)) == [b"", True]
    assert driver.lookup(range(100, 148)) == 0
    assert driver.retrieve(TOKENS, request_id="waiting") == [b"", True]
    driver.store(range(100, 148))
    assert driver.lookup(range(100, 148)) == 3


@pytest.mark.parametrize(("readers", "shares"), [(0, 1), (1, 1), (3, 3)])
def test_each_reader_has_a_share(driver: Driver, readers: int, shares: int) -> None:
    driver.lookup(TOKENS, num_kv_readers=readers)
    for _ in range(shares):
        assert driver.leased == 3
        driver.retrieve(TOKENS)
    assert driver.leased == 0


class TestFree:
    @pytest.mark.parametrize(
        ("start", "end", "left"),
        [(0, 16, 2), (0, 31, 2), (0, 48, 0), (0, 15, 3), (16, 48, 1), (8, 48, 1), (16, 16, 3), (32, 16, 3), (-5, 9, 3)],
    )
    def test_the_complete_chunks_of_the_range_are_given_back(
        self, driver: Driver, start: int, end: int, left: int
    ) -> None:
        driver.lookup(TOKENS)
        driver.free(TOKENS, start=start, end=end)
        assert driver.leased == left

    def test_for_all_readers_and_shards(self) -> None:
        driver = Driver()
        for shard in range(2):
            driver.register(shard, world_size=2)
            driver.store(TOKENS, shard, worker_id=shard, world_size=2)
        driver.lookup(TOKENS, world_size=2, num_kv_readers=3)
        assert driver.leased == 6
        driver.free(TOKENS, end=16, world_size=2, num_kv_readers=3)
        assert driver.leased == 4

    def test_of_its_own_request_only(self, driver: Driver) -> None:
        driver.lookup(TOKENS, request_id="a")
        driver.free(TOKENS, request_id="b")
        driver.free(TOKENS, request_id="a", client=b"another connection")
        assert driver.leased == 3

    def test_a_second_time_takes_nothing_from_others(self, driver: Driver) -> None:
        driver.lookup(TOKENS, request_id="a")
        driver.lookup(TOKENS, request_id="b")
        for _ in range(3):
            driver.free(TOKENS, request_id="a")
        assert driver.leased == 3

    def test_an_answer_not_collected_before_is_not_given_after(self, driver: Driver) -> None:
        driver.ask(m.Lookup(key(TOKENS), packed(1)))
        driver.free(TOKENS)
        assert driver.ask(m.QueryPrefetchStatus("r")) == 0

    def test_tokens_that_were_not_looked_up_free_nothing(self, driver: Driver) -> None:
        driver.lookup(TOKENS)
        driver.free(range(100, 148))
        assert driver.leased == 3


class TestEnd:
    def test_the_end_of_a_request_gives_back_what_is_left(self, driver: Driver) -> None:
        driver.lookup(TOKENS, num_kv_readers=2)
        driver.retrieve(TOKENS, start=16)
        driver.end()
        assert driver.leased == 0
        assert driver.report().active_sessions == 0

    def test_a_store_may_come_after_it(self, driver: Driver) -> None:
        driver.lookup(range(100, 116), request_id="late")
        driver.end("late")
        assert driver.store(range(100, 116), request_id="late") == [b"", True]
        assert driver.lookup(range(100, 116)) == 1

    def test_another_lookup_of_the_request_replaces_the_first(self, driver: Driver) -> None:
        driver.lookup(TOKENS)
        assert driver.lookup(TOKENS[:16]) == 1
        assert driver.leased == 1
        assert driver.report().active_sessions == 1

    def test_leases_end_after_five_minutes_and_the_promise_with_them(self, driver: Driver) -> None:
        driver.ask(m.Lookup(key(TOKENS), packed(1)))
        driver.tick(300)
        assert driver.leased == 3
        driver.tick(0.1)
        assert driver.leased == 0
        assert driver.ask(m.QueryPrefetchStatus("r")) == 0

    def test_a_session_is_forgotten_after_ten_minutes(self, driver: Driver) -> None:
        driver.lookup([])
        driver.tick(600)
        assert driver.report().active_sessions == 1
        driver.tick(0.1)
        assert driver.report().active_sessions == 0

    def test_the_times_are_settings(self) -> None:
        driver = Driver(liveness=Liveness(lease_ttl=1.0, session_ttl=2.0))
        driver.register()
        driver.store(TOKENS)
        driver.lookup(TOKENS)
        driver.tick(1.1)
        assert (driver.leased, driver.report().active_sessions) == (0, 1)
        driver.tick(1.0)
        assert driver.report().active_sessions == 0

    def test_leases_end_with_their_session_at_the_latest(self) -> None:
        driver = Driver(liveness=Liveness(lease_ttl=9.0, session_ttl=1.0))
        driver.register()
        driver.store(TOKENS)
        driver.lookup(TOKENS)
        driver.tick(1.1)
        assert (driver.leased, driver.report().active_sessions) == (0, 0)

    def test_a_new_lookup_starts_the_time_anew(self, driver: Driver) -> None:
        driver.lookup(TOKENS)
        driver.tick(200)
        driver.lookup(TOKENS)
        driver.tick(200)
        assert driver.leased == 3


def test_hits_and_misses_are_counted_in_chunks(driver: Driver) -> None:
    driver.lookup([*TOKENS, *range(900, 932)])
    driver.lookup(TOKENS, model_name="nobody's")
    report = driver.report().l1
    assert (report.hit_chunks, report.missed_chunks) == (3, 2)


def test_what_is_looked_up_often_stays_longest() -> None:
    driver = Driver(slots=6)
    driver.register()
    driver.store(TOKENS)
    driver.store(range(100, 148))
    driver.lookup(TOKENS)
    driver.end()
    driver.store(range(200, 232))
    assert driver.lookup(TOKENS) == 3
    assert driver.lookup(range(100, 148)) == 1


class TestConnections:
    """Requests of a scheduler that is gone end, since nobody else will end them."""

    def test_its_leases_end_when_its_connection_has_been_gone_for_two_minutes(self, driver: Driver) -> None:
        driver.connected = False
        self._promise(driver)
        driver.tick(11)
        driver.tick(119)
        assert driver.leased == 2
        driver.tick(1)
        assert (driver.leased, driver.report().active_sessions) == (0, 0)

    def test_it_keeps_them_while_its_connection_stands(self, driver: Driver) -> None:
        self._promise(driver)
        driver.tick(290)
        assert driver.leased == 2

    def test_a_connection_that_was_found_again_counts_anew(self, driver: Driver) -> None:
        driver.connected = False
        self._promise(driver)
        driver.tick(100)
        driver.connected = True
        driver.tick(50)
        driver.connected = False
        driver.tick(119)
        assert driver.leased == 2

    def test_requests_of_others_stay(self, driver: Driver) -> None:
        self._promise(driver)
        driver.lookup(range(32), client=b"other", request_id="other")
        driver.lost = {b"other"}
        driver.tick(140)
        assert driver.report().active_sessions == 1
        assert driver.retrieve(range(32)) == [b"", True]

    def test_nobody_is_asked_after_whose_requests_are_new(self, driver: Driver) -> None:
        self._promise(driver)
        driver.tick(10)
        assert driver.probes == []
        driver.tick(0.1)
        assert driver.probes == [Probe(b"scheduler"), Probe(b"c")]

    def _promise(self, driver: Driver) -> None:
        assert driver.lookup(range(32), client=b"scheduler") == 2
