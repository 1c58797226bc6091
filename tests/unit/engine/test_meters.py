"""What the engine counts of stores, retrieves and lookups, seen from the requests that cause it."""

from __future__ import annotations

from typing import Any

import pytest

from engine import LookupReport, TransferReport
from engine.histogram import NOTHING_COUNTED
from engine.wire import messages as m
from tests.unit.engine.driver import Driver
from tests.unit.engine.support import HANDLE, group, key, register_engine_driven

TOKENS = list(range(48))
"""Three chunks of 1,024 bytes."""
BLOCKS = [[1, 2, 3, 4, 5, 6]]


def meter(driver: Driver, direction: str, mode: str) -> TransferReport:
    [found] = [each for each in driver.report().transfers if (each.direction, each.mode) == (direction, mode)]
    return found


def outcomes(report: TransferReport) -> tuple[int, int]:
    """How many were done, and how many failed."""
    return report.done.total, report.failed.total


def moved(report: TransferReport) -> tuple[int, int, int, int]:
    return report.begun, report.ended, report.objects, report.bytes


class TestServerCopies:
    @pytest.fixture
    def driver(self) -> Driver:
        made = Driver()
        made.register()
        return made

    def stores(self, driver: Driver) -> TransferReport:
        return meter(driver, "store", "lmcache_driven")

    def retrieves(self, driver: Driver) -> TransferReport:
        return meter(driver, "retrieve", "lmcache_driven")

    def test_one_is_timed_from_its_arrival_to_its_end(self, driver: Driver) -> None:
        driver.working, driver.now = False, 100.0
        driver.start(m.Store(key(TOKENS, worker_id=0), 1, BLOCKS, HANDLE), waited=2.0)
        assert (moved(self.stores(driver)), outcomes(self.stores(driver))) == ((1, 0, 0, 0), (0, 0))
        driver.now = 103.0
        driver.work()
        assert moved(self.stores(driver)) == (1, 1, 3, 3 * 1024)
        assert outcomes(self.stores(driver)) == (1, 0)
        assert self.stores(driver).done.sum == 5.0

    def test_a_retrieve_is_counted_apart_from_a_store(self, driver: Driver) -> None:
        driver.store(TOKENS)
        driver.retrieve(TOKENS[:32])
        assert moved(self.retrieves(driver)) == (1, 1, 2, 2 * 1024)
        assert moved(self.stores(driver)) == (1, 1, 3, 3 * 1024)
        assert moved(meter(driver, "store", "engine_driven")) == (0, 0, 0, 0)

    def test_one_for_which_nothing_moves_is_done_all_the_same(self, driver: Driver) -> None:
        driver.store(TOKENS)
        driver.store(TOKENS)
        assert (moved(self.stores(driver))[:2], outcomes(self.stores(driver))) == ((1, 1), (2, 0))

    def test_one_that_fails_moves_nothing(self, driver: Driver) -> None:
        driver.problem = "the device is gone"
        driver.store(TOKENS)
        assert moved(self.stores(driver)) == (1, 1, 0, 0)
        assert outcomes(self.stores(driver)) == (0, 1)

    def test_one_that_is_refused_has_failed_without_beginning(self, driver: Driver) -> None:
        driver.now = 50.0
        driver.retrieve(TOKENS, waited=3.0)
        assert moved(self.retrieves(driver)) == (0, 0, 0, 0)
        assert outcomes(self.retrieves(driver)) == (0, 1)
        assert self.retrieves(driver).failed.sum == 3.0

    def test_the_store_of_an_unsupported_worker_is_none(self, driver: Driver) -> None:
        driver.register(2, groups=[group([0, 1], sw_size_tokens=64)])
        assert driver.report().workers[1].state == "unsupported"
        driver.store(TOKENS, 2)
        assert outcomes(self.stores(driver)) == (0, 0)

    def test_what_is_not_there_and_what_is_not_ready_are_counted_apart(self, driver: Driver) -> None:
        driver.store(TOKENS[:16])
        driver.working = False
        driver.start(m.Store(key(TOKENS[:32], worker_id=0), 1, [BLOCKS[0][:4]], HANDLE))
        driver.retrieve(TOKENS)
        l1 = driver.report().l1
        assert (l1.absent_reads, l1.unready_reads) == (1, 1)


class TestWorkerCopies:
    @pytest.fixture
    def driver(self) -> Driver:
        made = Driver()
        made.ask(register_engine_driven(1))
        return made

    def stores(self, driver: Driver) -> TransferReport:
        return meter(driver, "store", "engine_driven")

    def retrieves(self, driver: Driver) -> TransferReport:
        return meter(driver, "retrieve", "engine_driven")

    def ask(self, driver: Driver, message: type[m.Message], *more: Any) -> Any:
        driver.now += 1.0
        return driver.ask(message(key(TOKENS, worker_id=0), 1, *more), waited=0.25)

    def test_it_is_timed_from_what_prepares_to_what_commits(self, driver: Driver) -> None:
        self.ask(driver, m.PrepareStore)
        assert (moved(self.stores(driver)), outcomes(self.stores(driver))) == ((1, 0, 0, 0), (0, 0))
        assert self.ask(driver, m.CommitStore, b"") is True
        assert moved(self.stores(driver)) == (1, 1, 3, 3 * 1024)
        assert (outcomes(self.stores(driver)), self.stores(driver).done.sum) == ((1, 0), 1.25)
        self.ask(driver, m.PrepareRetrieve)
        self.ask(driver, m.CommitRetrieve)
        assert moved(self.retrieves(driver)) == (1, 1, 3, 3 * 1024)
        assert (outcomes(self.retrieves(driver)), self.retrieves(driver).done.sum) == ((1, 0), 1.25)

    def test_nothing_to_lend_is_a_store_that_is_done(self, driver: Driver) -> None:
        for _ in range(2):
            self.ask(driver, m.PrepareStore)
            self.ask(driver, m.CommitStore, b"")
        assert (moved(self.stores(driver))[:2], outcomes(self.stores(driver))) == ((1, 1), (2, 0))

    @pytest.mark.parametrize(("clear", "data"), [(True, b""), (False, b"the bytes")])
    def test_what_a_commit_does_not_publish_has_failed(self, driver: Driver, clear: bool, data: bytes) -> None:
        self.ask(driver, m.PrepareStore)
        if clear:
            driver.ask(m.Clear(False))
        assert self.ask(driver, m.CommitStore, data) is False
        assert (moved(self.stores(driver)), outcomes(self.stores(driver))) == ((1, 1, 0, 0), (0, 1))

    def test_what_its_worker_left_behind_has_ended_without_an_outcome(self, driver: Driver) -> None:
        self.ask(driver, m.PrepareStore)
        self.ask(driver, m.CommitStore, b"")
        self.ask(driver, m.PrepareRetrieve)
        driver.ask(m.PrepareStore(key(range(100, 116), worker_id=0), 1))
        driver.ask(m.UnregisterEngineDriven(1))
        assert (moved(self.stores(driver))[:2], outcomes(self.stores(driver))) == ((2, 2), (1, 0))
        assert (moved(self.retrieves(driver))[:2], outcomes(self.retrieves(driver))) == ((1, 1), (0, 0))

    def test_a_retrieve_of_what_is_not_there_has_failed(self, driver: Driver) -> None:
        self.ask(driver, m.PrepareRetrieve)
        assert (moved(self.retrieves(driver))[:2], outcomes(self.retrieves(driver))) == ((0, 0), (0, 1))
        assert driver.report().l1.absent_reads == 3


def test_bytes_being_written_are_told_until_they_are_written_or_given_up() -> None:
    driver = Driver()
    driver.register()
    driver.working = False
    driver.start(m.Store(key(TOKENS, worker_id=0), 1, BLOCKS, HANDLE))
    assert driver.report().l1.reserved_bytes == driver.cache.used == 3 * 4096
    driver.ask(m.Clear(False))
    assert driver.report().l1.reserved_bytes == 3 * 4096
    driver.work()
    assert driver.report().l1.reserved_bytes == 0
    driver.problem = "no"
    driver.start(m.Store(key(TOKENS, worker_id=0), 1, BLOCKS, HANDLE))
    assert driver.report().l1.reserved_bytes == 3 * 4096
    driver.work()
    assert driver.report().l1.reserved_bytes == 0


def test_lookups_are_counted_by_what_kept_them_from_looking() -> None:
    driver = Driver()
    driver.register(1)
    driver.store(TOKENS)
    driver.lookup(TOKENS)
    driver.lookup(range(900, 932))
    driver.lookup(TOKENS[:15])
    driver.lookup(TOKENS, model_name="nobody's")
    driver.start(m.Lookup(key(TOKENS, cache_salt="a/b"), b"\x01"))
    assert driver.report().lookups == LookupReport(4, 1, 1, 3, 0, NOTHING_COUNTED)


def test_nothing_new_is_no_new_report() -> None:
    driver = Driver()
    driver.register()
    driver.store(TOKENS)
    before = driver.report().transfers
    driver.lookup(TOKENS)
    assert driver.report().transfers is before
