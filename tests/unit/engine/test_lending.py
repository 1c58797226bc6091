"""Slots of the pool lent to engines that copy by themselves: to whom, for how long, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest

from engine.wire import messages as m
from tests.unit.engine.driver import SLOT, Driver
from tests.unit.engine.support import key, register_engine_driven

TOKENS = list(range(48))
"""Three chunks."""
SLOT_SHAPE = {"length": 1024, "shape": [2, 16, 16], "dtype": "bfloat16"}
NO_SLOTS = {"context": {"slots": [], "chunk_indices": []}}
FAILED = {"success": False, "data": b"", "context": {}}


@pytest.fixture
def driver() -> Driver:
    made = Driver()
    for instance_id in (1, 2):
        made.ask(register_engine_driven(instance_id))
    return made


def worker_key(tokens: list[int] = TOKENS, **changes: Any) -> m.Key:
    return key(tokens, **{"worker_id": 0, **changes})


def prepare_store(driver: Driver, instance_id: int = 1, **changes: Any) -> Any:
    return driver.ask(m.PrepareStore(worker_key(**changes), instance_id))


def commit_store(driver: Driver, instance_id: int = 1, data: bytes = b"", **changes: Any) -> Any:
    return driver.ask(m.CommitStore(worker_key(**changes), instance_id, data))


def prepare_retrieve(driver: Driver, instance_id: int = 1, **changes: Any) -> Any:
    return driver.ask(m.PrepareRetrieve(worker_key(**changes), instance_id))


def commit_retrieve(driver: Driver, instance_id: int = 1, **changes: Any) -> Any:
    return driver.ask(m.CommitRetrieve(worker_key(**changes), instance_id))


def store(driver: Driver, instance_id: int = 1, **changes: Any) -> None:
    prepare_store(driver, instance_id, **changes)
    assert commit_store(driver, instance_id, **changes) is True


class TestStore:
    def test_every_absent_chunk_gets_a_slot(self, driver: Driver) -> None:
        context = prepare_store(driver)["context"]
        assert context["chunk_indices"] == [0, 1, 2]
        offsets = [slot.pop("offset") for slot in context["slots"]]
        assert context["slots"] == [SLOT_SHAPE] * 3
        assert len(set(offsets)) == 3
        assert all(offset % SLOT == 0 for offset in offsets)

    def test_it_is_found_when_it_is_committed_and_not_before(self, driver: Driver) -> None:
        prepare_store(driver)
        assert driver.lookup(TOKENS) == 0
        assert commit_store(driver) is True
        assert driver.lookup(TOKENS) == 3

    def test_only_what_is_absent_is_lent_and_told_by_its_place(self, driver: Driver) -> None:
        store(driver, end=16)
        assert prepare_store(driver)["context"]["chunk_indices"] == [1, 2]
        commit_store(driver)
        assert prepare_store(driver, start=16) == NO_SLOTS

    def test_what_another_is_writing_counts_as_there(self, driver: Driver) -> None:
        prepare_store(driver, end=32)
        assert prepare_store(driver, 2)["context"]["chunk_indices"] == [2]

    def test_what_finds_no_room_is_left_out_from_the_tail(self) -> None:
        driver = Driver(slots=2)
        driver.ask(register_engine_driven(1))
        assert prepare_store(driver)["context"]["chunk_indices"] == [0, 1]
        assert prepare_store(driver, tokens=list(range(100, 148))) == NO_SLOTS
        assert commit_store(driver) is True
        assert driver.lookup(TOKENS) == 2

    def test_what_was_not_prepared_cannot_be_committed(self, driver: Driver) -> None:
        assert commit_store(driver) is False
        prepare_store(driver)
        assert commit_store(driver, 2) is False
        assert commit_store(driver, end=32) is False
        assert commit_store(driver, cache_salt="s") is False
        assert commit_store(driver) is True
        assert commit_store(driver) is False

    def test_the_request_is_no_part_of_what_is_committed(self, driver: Driver) -> None:
        prepare_store(driver, request_id="a")
        assert commit_store(driver, request_id="b") is True

    def test_the_same_range_is_not_lent_twice(self, driver: Driver) -> None:
        prepare_store(driver)
        assert prepare_store(driver) == NO_SLOTS
        assert commit_store(driver) is True
        assert driver.lookup(TOKENS) == 3

    def test_nor_the_rest_of_it_when_there_is_room_again(self) -> None:
        driver = Driver(slots=3)
        driver.ask(register_engine_driven(1))
        store(driver, tokens=list(range(100, 116)))
        driver.lookup(list(range(100, 116)), request_id="reader")
        assert prepare_store(driver)["context"]["chunk_indices"] == [0, 1]
        driver.end("reader")
        assert prepare_store(driver) == NO_SLOTS
        assert commit_store(driver) is True
        assert driver.lookup(TOKENS) == 2

    def test_bytes_through_the_socket_are_refused_and_what_was_lent_comes_back(self, driver: Driver) -> None:
        prepare_store(driver)
        assert commit_store(driver, data=b"pickled") is False
        assert "it cannot open the pool" in driver.warnings[-1]
        assert (driver.cache.used, driver.lookup(TOKENS)) == (0, 0)
        assert commit_store(driver, data=b"pickled") is False

    def test_a_store_that_began_before_a_clear_does_not_reappear(self, driver: Driver) -> None:
        prepare_store(driver)
        driver.ask(m.Clear(False))
        assert driver.cache.used == 3 * SLOT, "the worker may still be writing"
        commit_store(driver)
        assert (driver.cache.used, driver.lookup(TOKENS)) == (0, 0)

    @pytest.mark.parametrize("changes", [{"worker_id": None}, {"start": 8}, {"end": 64}, {"model_name": "n"}], ids=str)
    def test_a_key_that_does_not_fit_is_lent_nothing(self, driver: Driver, changes: dict[str, Any]) -> None:
        assert prepare_store(driver, **changes) == NO_SLOTS
        assert commit_store(driver, **changes) is False
        assert driver.cache.used == 0


class TestRetrieve:
    def test_every_chunk_of_the_range_is_lent_in_order(self, driver: Driver) -> None:
        written = prepare_store(driver)["context"]["slots"]
        commit_store(driver)
        assert prepare_retrieve(driver, 2, start=16) == {
            "success": True,
            "data": b"",
            "context": {"slots": written[1:]},
        }

    @pytest.mark.parametrize(
        "changes",
        [{}, {"start": 16}, {"start": 16, "end": 16}, {"cache_salt": "s"}, {"worker_id": None}, {"end": 64}],
        ids=str,
    )
    def test_all_are_lent_or_none(self, driver: Driver, changes: dict[str, Any]) -> None:
        store(driver, end=32)
        assert prepare_retrieve(driver, **changes) == FAILED
        assert driver.leased == 0

    def test_what_is_lent_for_reading_is_not_evicted_until_it_is_back(self) -> None:
        driver = Driver(slots=3)
        driver.ask(register_engine_driven(1))
        store(driver)
        prepare_retrieve(driver)
        assert prepare_store(driver, tokens=list(range(100, 148))) == NO_SLOTS
        assert commit_retrieve(driver) is True
        assert prepare_store(driver, tokens=list(range(100, 148)))["context"]["chunk_indices"] == [0, 1, 2]

    def test_it_uses_the_leases_of_its_request_up(self, driver: Driver) -> None:
        store(driver)
        driver.lookup(TOKENS)
        prepare_retrieve(driver)
        driver.end()
        assert driver.leased == 3
        commit_retrieve(driver)
        assert driver.leased == 0

    def test_it_is_true_without_a_retrieve_and_twice(self, driver: Driver) -> None:
        assert commit_retrieve(driver) is True
        store(driver)
        prepare_retrieve(driver)
        assert [commit_retrieve(driver) for _ in range(2)] == [True, True]

    def test_each_of_two_retrieves_of_a_range_comes_back_by_itself(self, driver: Driver) -> None:
        store(driver)
        for request_id in ("a", "b"):
            prepare_retrieve(driver, request_id=request_id)
        commit_retrieve(driver, request_id="a")
        assert driver.leased == 3
        commit_retrieve(driver, request_id="b")
        assert driver.leased == 0

    def test_one_workers_commit_does_not_end_anothers_retrieve(self, driver: Driver) -> None:
        store(driver)
        prepare_retrieve(driver, 1)
        commit_retrieve(driver, 2)
        assert driver.leased == 3

    @pytest.mark.parametrize("start", [0, 16])
    @pytest.mark.parametrize("way", ["committed", "given up"])
    def test_what_was_read_still_loses_its_suffix_first(self, way: str, start: int) -> None:
        driver = Driver(slots=3)
        driver.ask(register_engine_driven(1))
        driver.ask(register_engine_driven(2))
        store(driver)
        prepare_retrieve(driver, start=start)
        if way == "committed":
            commit_retrieve(driver, start=start)
        else:
            driver.ask(m.UnregisterEngineDriven(1))
        store(driver, 2, tokens=list(range(100, 116)))
        assert driver.lookup(TOKENS) == 2

    def test_what_is_lent_for_reading_outlives_a_clear(self, driver: Driver) -> None:
        store(driver)
        prepare_retrieve(driver)
        driver.ask(m.Clear(True))
        assert driver.cache.used == 3 * SLOT
        commit_retrieve(driver)
        assert driver.cache.used == 0


class TestEnd:
    @pytest.mark.parametrize("way", ["leaves", "is given up", "registers as something else"])
    def test_what_a_worker_had_comes_back_unpublished_when_it(self, driver: Driver, way: str) -> None:
        store(driver, end=16)
        prepare_store(driver)
        prepare_retrieve(driver, end=16)
        assert (driver.leased, driver.reserved) == (1, 2)
        if way == "leaves":
            driver.ask(m.UnregisterEngineDriven(1))
        elif way == "is given up":
            driver.tick(3601)
        else:
            driver.ask(register_engine_driven(1, hidden_dim_size=32))
        assert (driver.leased, driver.reserved, driver.cache.used) == (0, 0, SLOT)

    def test_after_a_while_others_may_store_what_was_lent_and_the_slot_stays_lent(self, driver: Driver) -> None:
        prepare_store(driver)
        driver.tick(600)
        assert prepare_store(driver, 2) == NO_SLOTS
        driver.tick(0.1)
        assert driver.cache.used == 3 * SLOT
        assert prepare_store(driver, 2)["context"]["chunk_indices"] == [0, 1, 2]
        commit_store(driver, 2)
        assert driver.cache.used == 6 * SLOT
        commit_store(driver, 1)
        assert driver.cache.used == 3 * SLOT
        assert driver.lookup(TOKENS) == 3
