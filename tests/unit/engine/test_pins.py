"""Pins: a prefix stays until its time is over, within a budget, whatever else is stored or cleared."""

from __future__ import annotations

import pytest

from engine import DropPins, ListPins, PinError, PinReport
from engine.commands import SetPin, SetPinBudget
from engine.hashing import hash_tokens
from engine.wire import messages as m
from tests.unit.engine.driver import SLOT, Driver

CHUNK = 16
PINNED = [1] * CHUNK * 4


@pytest.fixture
def driver() -> Driver:
    driver = Driver(20)
    driver.register()
    return driver


def pin(driver: Driver, tokens: list[int] = PINNED, ttl: float = 60.0, **more: object) -> PinReport:
    asked = {"model_name": "m", "world_size": None, "cache_salt": "", **more}
    return driver.tell(SetPin(hashes=tuple(hash_tokens(tokens, CHUNK)), ttl=ttl, **asked))  # type: ignore[arg-type]


def store(driver: Driver, tokens: list[int]) -> None:
    driver.store(tokens, block_ids=[[1, 2] * (len(tokens) // CHUNK)])


def flood(driver: Driver) -> None:
    for number in range(100, 150):
        store(driver, [number] * CHUNK)


def found(driver: Driver) -> int:
    hits = driver.lookup(PINNED)
    driver.end()
    return hits


def test_what_is_there_stays_and_the_rest_is_evicted_around_it(driver: Driver) -> None:
    store(driver, PINNED)
    report = pin(driver)
    assert (report.chunks, report.objects, report.bytes, report.expires_in) == (4, 4, 4 * SLOT, 60.0)
    flood(driver)
    assert found(driver) == 4


def test_what_comes_later_is_pinned_within_a_second(driver: Driver) -> None:
    assert pin(driver).objects == 0
    driver.tick(1)
    store(driver, PINNED)
    driver.tick(1)
    flood(driver)
    assert found(driver) == 4
    assert driver.tell(ListPins()).bytes == 4 * SLOT


def test_its_end_is_that_of_its_time_and_setting_it_again_renews_that(driver: Driver) -> None:
    store(driver, PINNED)
    first = pin(driver, ttl=60)
    driver.tick(50)
    assert pin(driver, ttl=60).id == first.id
    driver.tick(50)
    assert [each.expires_in for each in driver.tell(ListPins()).pins] == [10.0]
    driver.tick(10)
    assert driver.tell(ListPins()).pins == ()
    assert driver.leased == 0
    flood(driver)
    assert found(driver) == 0


def test_removing_it_lets_its_chunks_go(driver: Driver) -> None:
    store(driver, PINNED)
    report = pin(driver)
    removed = driver.tell(DropPins((report.id, report.id, "nobody")))
    assert (removed.pins, removed.bytes, removed.missing) == (1, 4 * SLOT, 1)
    assert driver.leased == 0


def test_two_pins_of_one_prefix_count_its_bytes_once_and_the_last_one_keeps_it(driver: Driver) -> None:
    longer = [*PINNED, *[2] * CHUNK]
    store(driver, longer)
    short, long = pin(driver), pin(driver, longer)
    assert driver.tell(ListPins()).bytes == 5 * SLOT
    assert driver.tell(DropPins((long.id,))).bytes == SLOT
    flood(driver)
    assert found(driver) == 4
    assert driver.tell(DropPins((short.id,))).bytes == 4 * SLOT


def test_over_the_budget_a_pin_is_refused_and_changes_nothing(driver: Driver) -> None:
    store(driver, [3] * CHUNK * 6)
    with pytest.raises(PinError, match="budget"):
        pin(driver, [3] * CHUNK * 6)
    assert driver.tell(ListPins()).budget == 5 * SLOT
    assert driver.leased == 0
    driver.tell(SetPinBudget(6 * SLOT))
    assert pin(driver, [3] * CHUNK * 6).objects == 6


def test_of_what_comes_later_the_budget_holds_the_first_chunks(driver: Driver) -> None:
    driver.tell(SetPinBudget(2 * SLOT))
    pin(driver)
    store(driver, PINNED)
    driver.tick(1)
    driver.tick(1)
    assert driver.tell(ListPins()).bytes == 2 * SLOT
    flood(driver)
    assert found(driver) == 2


def test_a_prompt_without_a_complete_chunk_cannot_be_pinned(driver: Driver) -> None:
    with pytest.raises(PinError, match="complete chunk"):
        pin(driver, [1] * (CHUNK - 1))


def test_a_clear_takes_pinned_objects_and_the_pin_holds_what_comes_again(driver: Driver) -> None:
    store(driver, PINNED)
    pin(driver)
    driver.ask(m.Clear(False))
    assert found(driver) == 0
    driver.tick(1)
    driver.tick(1)
    assert (driver.cache.used, driver.leased) == (0, 0)
    store(driver, PINNED)
    driver.tick(1)
    driver.tick(1)
    flood(driver)
    assert found(driver) == 4


def test_a_pin_is_for_its_model_and_salt_only(driver: Driver) -> None:
    store(driver, PINNED)
    assert pin(driver, model_name="other").objects == 0
    assert pin(driver, cache_salt="other").objects == 0
    assert pin(driver, world_size=2).objects == 0
    assert len(driver.tell(ListPins()).pins) == 3
