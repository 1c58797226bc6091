"""Tenants: what a quota allows and protects, who has set it, and what a change does to what is there."""

from __future__ import annotations

import pytest

from engine import DropQuota, ListQuotas, LookAtQuota, QuotaError, QuotaReport, SetQuota, TenantQuota
from engine.commands import ConfigureQuotas, Shrink
from engine.discovery import policy_maker, policy_names
from engine.settings import QuotaSettings
from engine.wire import messages as m
from tests.unit.engine.driver import SLOT, Driver

CHUNK = 16


def prompt(number: int, chunks: int = 1) -> list[int]:
    """Tokens that no other number has."""
    return [number] * CHUNK * chunks


def store(driver: Driver, tenant: str, number: int, chunks: int = 1) -> None:
    driver.now += 1
    driver.store(prompt(number, chunks), cache_salt=tenant, block_ids=[[1, 2] * chunks])


def found(driver: Driver, tenant: str, number: int, chunks: int = 1) -> int:
    hits = driver.lookup(prompt(number, chunks), cache_salt=tenant)
    driver.end()
    return hits


def used(driver: Driver, tenant: str) -> int:
    """In slots."""
    return driver.tell(LookAtQuota(tenant)).used // SLOT


def settle(driver: Driver) -> None:
    driver.run_jobs()
    assert driver.cache._moves == 0


def put(driver: Driver, tenant: str, limit: int | None = None, reservation: int = 0) -> QuotaReport:
    """In slots."""
    quota = TenantQuota(tenant, None if limit is None else limit * SLOT, reservation * SLOT)
    report = driver.tell(SetQuota(quota))
    settle(driver)
    return report


@pytest.fixture(params=policy_names())
def driver(request: pytest.FixtureRequest) -> Driver:
    driver = Driver(20, make_policy=policy_maker(request.param))
    driver.register()
    return driver


def test_over_its_limit_a_tenant_evicts_its_own_first(driver: Driver) -> None:
    put(driver, "a", limit=4)
    for number in range(1, 4):
        store(driver, "b", number)
    for number in range(10, 20):
        store(driver, "a", number)
        assert used(driver, "a") <= 4
    assert used(driver, "a") == 4
    assert [found(driver, "b", number) for number in range(1, 4)] == [1, 1, 1]
    assert driver.report().l1.refused_objects == 0


def test_a_prompt_longer_than_the_limit_loses_its_tail(driver: Driver) -> None:
    put(driver, "a", limit=4)
    store(driver, "a", 1, chunks=7)
    assert found(driver, "a", 1, chunks=7) == 4
    assert dict(driver.report().l1.refusals) == {"in_use": 0, "fragmented": 0, "quota": 3}


@pytest.mark.parametrize("flooder", ["b", "c"])
def test_a_flood_does_not_push_another_below_its_reservation(driver: Driver, flooder: str) -> None:
    put(driver, "a", reservation=6)
    put(driver, "c", limit=18)
    for number in range(1, 9):
        store(driver, "a", number)
    for number in range(100, 200):
        store(driver, flooder, number)
    assert used(driver, "a") == 6
    assert used(driver, flooder) == 14


def test_what_is_reserved_and_not_used_others_may_use_until_it_is_wanted(driver: Driver) -> None:
    put(driver, "a", reservation=10)
    for number in range(100, 130):
        store(driver, "b", number)
    assert used(driver, "b") == 20
    for number in range(1, 31):
        store(driver, "a", number)
    assert used(driver, "a") >= 10
    assert driver.report().l1.refused_objects == 0


def test_the_default_limit_holds_for_each_unknown_tenant_by_itself(driver: Driver) -> None:
    driver.tell(ConfigureQuotas(QuotaSettings(3 * SLOT)))
    settle(driver)
    for tenant in ("x", "y"):
        for number in range(1, 8):
            store(driver, tenant, number)
        assert used(driver, tenant) == 3
    assert driver.tell(ListQuotas()).others == 2
    assert driver.tell(LookAtQuota("x")) == QuotaReport("x", 3 * SLOT, 0, 3 * SLOT, "default")
    driver.ask(m.Clear(False))
    assert driver.cache.usage == {}


def test_without_quotas_nobody_has_a_limit_and_usage_is_counted(driver: Driver) -> None:
    for number in range(1, 6):
        store(driver, "a", number)
    assert driver.tell(LookAtQuota("a")) == QuotaReport("a", None, 0, 5 * SLOT, "default")
    reports = driver.tell(ListQuotas())
    assert (reports.default_limit, reports.tenants, reports.others, reports.others_used) == (None, (), 1, 5 * SLOT)


def test_a_lower_limit_evicts_what_is_too_much_and_keeps_the_prefix(driver: Driver) -> None:
    store(driver, "a", 1, chunks=8)
    report = put(driver, "a", limit=5)
    assert (report.limit, report.origin) == (5 * SLOT, "api")
    assert used(driver, "a") == 5
    assert found(driver, "a", 1, chunks=8) == 5


def test_what_is_leased_is_not_evicted_for_a_lower_limit(driver: Driver) -> None:
    store(driver, "a", 1, chunks=8)
    driver.lookup(prompt(1, 8), cache_salt="a")
    put(driver, "a", limit=5)
    assert used(driver, "a") == 8
    driver.end()
    store(driver, "a", 2)
    assert used(driver, "a") <= 5


def test_a_quota_that_is_deleted_gives_the_objects_back_to_the_others(driver: Driver) -> None:
    put(driver, "a", limit=4, reservation=4)
    for number in range(1, 5):
        store(driver, "a", number)
    assert driver.tell(DropQuota("a")) == QuotaReport("a", None, 0, 4 * SLOT, "default")
    settle(driver)
    assert used(driver, "a") == 4
    for number in range(100, 140):
        store(driver, "b", number)
    assert used(driver, "a") < 4
    assert driver.tell(DropQuota("a")) is None


def test_what_an_operator_has_set_wins_over_the_configuration_until_it_is_deleted(driver: Driver) -> None:
    first = QuotaSettings(None, (TenantQuota("a", 8 * SLOT), TenantQuota("b", 9 * SLOT)))
    driver.tell(ConfigureQuotas(first))
    put(driver, "a", limit=4)
    driver.tell(ConfigureQuotas(QuotaSettings(None, (TenantQuota("a", 12 * SLOT),))))
    settle(driver)
    assert [(each.cache_salt, each.limit, each.origin) for each in driver.tell(ListQuotas()).tenants] == [
        ("a", 4 * SLOT, "api")
    ]
    restored = driver.tell(DropQuota("a"))
    assert restored is not None
    assert (restored.limit, restored.origin) == (12 * SLOT, "config")


@pytest.mark.parametrize("quota", [TenantQuota("b", None, 15 * SLOT), TenantQuota("b", 3 * SLOT, 4 * SLOT)])
def test_more_than_there_is_cannot_be_reserved(driver: Driver, quota: TenantQuota) -> None:
    put(driver, "a", reservation=6)
    with pytest.raises(QuotaError, match="bytes"):
        driver.tell(SetQuota(quota))
    assert [each.cache_salt for each in driver.tell(ListQuotas()).tenants] == ["a"]


def test_l1_is_not_made_smaller_than_what_is_reserved(driver: Driver) -> None:
    put(driver, "a", reservation=6)
    with pytest.raises(QuotaError, match="reserve"):
        driver.tell(Shrink(5 * SLOT))
    assert driver.report().l1.memory_total_bytes == 20 * SLOT
    driver.tell(Shrink(6 * SLOT))


def test_quotas_hold_in_a_full_cache_whatever_comes(driver: Driver) -> None:
    put(driver, "a", limit=8, reservation=5)
    put(driver, "b", reservation=4)
    for number in range(1, 300):
        tenant = "abcd"[number * 7 % 4]
        store(driver, tenant, number % 23 + 1, chunks=number % 3 + 1)
        assert used(driver, "a") <= 8
        assert driver.cache.used == sum(driver.cache.usage.values())
        assert driver.cache.used <= driver.cache.capacity
    assert driver.report().l1.refused_objects == 0
