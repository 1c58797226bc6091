"""Time that passes while the server stands still counts against nobody, but for what protects the clients' blocks."""

from __future__ import annotations

import pytest

from engine.awake import LONGEST_PAUSE, Awake
from engine.events import Copy, Tick
from engine.settings import Liveness
from engine.wire import messages as m
from tests.unit.engine.driver import Driver
from tests.unit.engine.support import HANDLE, key, register_engine_driven

TOKENS = range(32)
JUMPS = pytest.mark.parametrize("jump", [60.0, 3600.0, 86_400.0, -60.0, -3600.0], ids=str)


def heard(*times: float) -> float:
    """Seconds that a server was awake that has heard of these times."""
    awake = Awake()
    awake.hear(times[0])
    before = awake.now
    for time in times[1:]:
        awake.hear(time)
    return awake.now - before


class TestAwake:
    def test_time_between_ticks_counts(self) -> None:
        assert heard(5.0, 6.0, 7.0, 7.0, 9.5) == 4.5

    def test_the_longest_pause_counts_and_a_longer_one_does_not(self) -> None:
        assert heard(0.0, LONGEST_PAUSE) == LONGEST_PAUSE
        assert heard(0.0, LONGEST_PAUSE + 0.1) == 0.0

    def test_it_goes_on_after_a_standstill(self) -> None:
        assert heard(0.0, 1.0, 3601.0, 3602.0) == 2.0

    def test_what_was_posted_a_little_earlier_does_not_take_time_back(self) -> None:
        assert heard(0.0, 2.0, 1.5, 2.5) == 2.5

    def test_a_clock_that_goes_back_is_gone_along_with(self) -> None:
        assert heard(0.0, 1.0, -3600.0, -3599.0) == 2.0


def in_use(driver: Driver) -> tuple[int, int]:
    """How many objects are leased, and how many are being written."""
    return driver.report().l1.leased_object_count, driver.report().l1.reserved_object_count


def workers(driver: Driver) -> list[int]:
    return [worker.instance_id for worker in driver.report().workers]


@pytest.fixture
def driver() -> Driver:
    """Two workers that have pinged, a request with its leases, and a slot that is lent for writing."""
    driver = Driver()
    driver.register(1)
    driver.store(TOKENS)
    driver.ask(register_engine_driven(2, model_name="lending"))
    for worker in (1, 2):
        driver.ask(m.Ping(worker))
    driver.tick(1)
    assert driver.lookup(TOKENS) == 2
    slots = driver.ask(m.PrepareStore(key(range(16), worker_id=0, model_name="lending"), 2))
    assert len(slots["context"]["slots"]) == 1
    assert in_use(driver) == (2, 1)
    return driver


@JUMPS
class TestAStandstill:
    def test_reaps_nobody(self, driver: Driver, jump: float) -> None:
        driver.handle(Tick(driver.now + jump))
        assert workers(driver) == [1, 2]
        assert driver.warnings == []

    def test_ends_no_lease_and_no_session(self, driver: Driver, jump: float) -> None:
        driver.stand_still(jump)
        assert in_use(driver) == (2, 1)
        assert driver.report().active_sessions == 1
        assert driver.retrieve(TOKENS) == [b"", True]

    def test_takes_no_slot_back(self, driver: Driver, jump: float) -> None:
        driver.stand_still(jump)
        assert driver.ask(m.CommitStore(key(range(16), worker_id=0, model_name="lending"), 2, b"")) is True

    def test_is_noticed_by_whatever_comes_first(self, driver: Driver, jump: float) -> None:
        driver.now += jump
        driver.ask(m.Ping(1))
        driver.handle(Tick(driver.now))
        assert workers(driver) == [1, 2]

    def test_ends_no_patience_that_goes_on_behind_it(self, driver: Driver, jump: float) -> None:
        driver.tick(100)
        driver.stand_still(jump)
        driver.tick(18)
        assert workers(driver) == [1, 2]
        driver.tick(3)
        assert workers(driver) == []


def test_the_blocks_of_a_client_are_protected_by_the_clock_itself() -> None:
    driver = Driver(liveness=Liveness(transfer_max_age=10.0))
    driver.register(1)
    driver.working = False
    uid = driver.start(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2, 3, 4]], HANDLE))
    copy = driver.pending[0]
    assert isinstance(copy, Copy)
    assert copy.not_after == driver.now + 10.0
    driver.stand_still(60)
    driver.work()
    assert driver.replies[uid] == [b"", False], "the client has given up meanwhile, and used its blocks otherwise"
