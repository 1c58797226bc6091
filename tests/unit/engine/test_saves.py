"""Saves: which objects go to which tier and when, and that nobody waits for it and nothing is held by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from engine import L2Settings
from engine.commands import ClearAll, ConfigureTiers, DeleteObjects, Drain, PauseTier
from engine.events import Save, TierCleared, TierDamaged
from engine.hashing import hash_tokens
from engine.status import L2Report, TierReport
from engine.wire import messages as m
from tests.unit.engine.driver import SLOT, Driver
from tests.unit.engine.support import key, register_engine_driven


def tokens(number: int, chunks: int = 1) -> list[int]:
    """A prompt of its own."""
    return list(range(1000 * number, 1000 * number + 16 * chunks))


def driver_with(*tiers: L2Settings, slots: int = 100, **more: Any) -> Driver:
    """L2 does nothing until a test says so."""
    driver = Driver(slots, tiers=tiers, **more)
    driver.register()
    driver.storage.working = False
    return driver


def tier(store_policy: str = "write_through", name: str = "t", **more: Any) -> L2Settings:
    return L2Settings("memory", name, store_policy=store_policy, **more)  # type: ignore[arg-type]


def report(driver: Driver, name: str = "t") -> L2Report:
    """What the engine tells of a tier; what its threads would tell does not matter here."""
    tiers = {each: cast("TierReport", None) for each in driver.storage.keys}
    status = driver.engine.report(failed_requests=0, dropped_messages=0, dropped_replies=0, tiers=tiers)
    return next(each for each in status.l2 if each.name == name)


def saving(driver: Driver) -> list[tuple[str, bytes]]:
    return [(save.tier, save.slot.key) for save in driver.asked(Save)]


def saved(driver: Driver, wanted: Sequence[int], name: str = "t") -> int:
    """How many leading chunks of a prompt a tier has."""
    rest = {each[16:] for each in driver.storage.keys[name]}
    hashes = list(hash_tokens(wanted, 16))
    return next((place for place, each in enumerate(hashes) if each not in rest), len(hashes))


def assert_nothing_is_held(driver: Driver) -> None:
    assert driver.cache.objects_in_use == (0, 0)
    assert driver.cache._borrowed == 0
    assert driver.cache._in_use == set()
    assert driver.report().running_saves == 0


class TestWriteThrough:
    def test_what_is_stored_is_saved_in_prefix_order_after_the_reply(self) -> None:
        driver = driver_with(tier())
        assert driver.store(tokens(1, 4)) == [b"", True]
        assert [name for name, _ in saving(driver)] == ["t"] * 4
        offsets = [save.slot.offset for save in driver.asked(Save)]
        entries = [driver.cache.find(save.slot.key) for save in driver.asked(Save)]
        assert offsets == [entry and entry.offset for entry in entries]
        driver.work_in_l2()
        assert saved(driver, tokens(1, 4)) == 4
        assert_nothing_is_held(driver)

    def test_what_workers_write_themselves_is_saved_too(self) -> None:
        driver = driver_with(tier())
        driver.ask(register_engine_driven(2, model_name="lent"))
        wanted = key(tokens(1, 2), worker_id=0, model_name="lent")
        driver.ask(m.PrepareStore(wanted, 2))
        assert saving(driver) == []
        assert driver.ask(m.CommitStore(wanted, 2, b"")) is True
        assert len(saving(driver)) == 2

    def test_a_store_that_failed_is_not_saved(self) -> None:
        driver = driver_with(tier())
        driver.problem = "it did not work"
        driver.store(tokens(1))
        assert saving(driver) == []

    def test_what_was_cleared_while_it_was_stored_is_not_saved(self) -> None:
        driver = driver_with(tier())
        driver.working = False
        driver.start(m.Store(key(tokens(1), worker_id=0), 1, [[1, 2]], b"stub"))
        driver.tell(ClearAll())
        driver.work()
        assert saving(driver) == []
        assert driver.cache.used == 0

    def test_every_tier_gets_it(self) -> None:
        driver = driver_with(tier(name="a"), tier(name="b"))
        driver.store(tokens(1))
        assert [name for name, _ in saving(driver)] == ["a", "b"]
        driver.work_in_l2()
        assert_nothing_is_held(driver)

    def test_what_is_there_already_is_not_saved_again(self) -> None:
        driver = driver_with(tier())
        driver.store(tokens(1))
        driver.work_in_l2()
        driver.store(tokens(1))
        driver.lookup(tokens(1))
        assert saving(driver) == []

    def test_what_came_from_the_tier_is_not_saved_to_it(self) -> None:
        driver = driver_with(tier())
        driver.store(tokens(1))
        driver.work_in_l2()
        driver.tell(ClearAll())
        driver.storage.working = True
        assert driver.lookup(tokens(1)) == 1
        driver.storage.working = False
        driver.tick(1)
        assert saving(driver) == []

    def test_it_is_no_reason_to_keep_it_in_mind_longer(self) -> None:
        """While it is saved an object stands where it stood: it goes when its turn comes and it is saved."""
        driver = driver_with(tier(), slots=64)
        driver.store(tokens(1))
        driver.work_in_l2()
        driver.store(tokens(2))
        driver.store(tokens(3))
        assert [entry.key for entry in driver.ranked][1:] == [key for _, key in saving(driver)]

    def test_an_object_that_is_being_saved_is_not_evicted(self) -> None:
        driver = driver_with(tier(), slots=16)
        driver.store(tokens(1, 2))
        for number in range(2, 30):
            driver.store(tokens(number))
        assert driver.lookup(tokens(1, 2)) == 2
        driver.end()
        driver.work_in_l2()
        for number in range(30, 60):
            driver.store(tokens(number))
        assert driver.look(tokens(1, 2)).reason == "evicted"

    def test_when_all_is_being_saved_stores_find_no_room_and_succeed(self) -> None:
        driver = driver_with(tier(), slots=1)
        driver.store(tokens(1))
        assert driver.store(tokens(2)) == [b"", True]
        assert driver.look(tokens(2)).reason == "refused"
        driver.work_in_l2()
        driver.store(tokens(2))
        assert driver.lookup(tokens(2)) == 1

    def test_a_save_that_fails_may_be_made_another_time(self) -> None:
        driver = driver_with(tier("selective", selective_uses=1))
        driver.store(tokens(1))
        driver.lookup(tokens(1))
        driver.work_in_l2("unavailable")
        assert_nothing_is_held_but_leases(driver, 1)
        driver.lookup(tokens(1), request_id="again")
        assert len(saving(driver)) == 1

    @pytest.mark.parametrize("outcome", ["done", "unavailable"])
    def test_what_is_cleared_while_it_is_saved_is_let_go_after_that(self, outcome: Any) -> None:
        driver = driver_with(tier())
        driver.store(tokens(1))
        (save,) = driver.asked(Save)
        driver.tell(ClearAll())
        assert driver.cache.used == SLOT
        driver.store(tokens(2))
        assert driver.cache.find(driver.asked(Save)[1].slot.key) is not None
        assert driver.asked(Save)[1].slot.offset != save.slot.offset
        driver.answer(save, outcome)
        assert driver.cache.used == SLOT
        driver.work_in_l2()
        assert_nothing_is_held(driver)

    def test_what_is_deleted_and_stored_again_while_it_is_saved_is_saved_again(self) -> None:
        driver = driver_with(tier())
        driver.store(tokens(1))
        (save,) = driver.asked(Save)
        driver.tell(DeleteObjects((save.slot.key,)))
        driver.store(tokens(1))
        assert [each.slot.key for each in driver.asked(Save)] == [save.slot.key] * 2
        driver.work_in_l2()
        assert_nothing_is_held(driver)
        assert driver.lookup(tokens(1)) == 1

    def test_leases_may_come_and_go_while_it_is_saved(self) -> None:
        driver = driver_with(tier(), slots=16)
        driver.store(tokens(1))
        assert driver.lookup(tokens(1)) == 1
        assert driver.leased == 1
        driver.end()
        assert driver.leased == 0
        driver.lookup(tokens(1))
        driver.work_in_l2()
        assert driver.leased == 1
        driver.end()
        assert_nothing_is_held(driver)
        assert len(driver.ranked) == 1


def assert_nothing_is_held_but_leases(driver: Driver, leases: int) -> None:
    assert driver.cache.objects_in_use == (leases, 0)
    assert driver.cache._borrowed == 0


class TestLimits:
    def test_a_quarter_of_l1_is_saved_at_a_time_and_the_rest_is_dropped_and_counted(self) -> None:
        driver = driver_with(tier(), slots=16)
        driver.store(tokens(1, 6), block_ids=[[1, 2] * 6])
        assert len(saving(driver)) == 4
        assert report(driver).dropped_saves == 2
        driver.work_in_l2()
        assert saved(driver, tokens(1, 6)) == 4

    def test_each_tier_has_limits_of_its_own(self) -> None:
        driver = driver_with(tier(name="a"), tier(name="b"), slots=16)
        driver.store(tokens(1, 6), block_ids=[[1, 2] * 6])
        assert len(saving(driver)) == 8

    def test_a_long_prompt_is_saved_in_one_go(self) -> None:
        driver = driver_with(tier(), slots=4000)
        driver.store(tokens(1, 600), block_ids=[[1, 2] * 600])
        assert len(saving(driver)) == 600
        assert report(driver).dropped_saves == 0

    def test_one_object_is_saved_however_small_l1_is(self) -> None:
        driver = driver_with(tier(), slots=2)
        driver.store(tokens(1, 2))
        assert len(saving(driver)) == 1


class TestWriteBack:
    def test_nothing_is_saved_while_there_is_room(self) -> None:
        driver = driver_with(tier("write_back"), slots=64)
        for number in range(50):
            driver.store(tokens(number))
        driver.tick(1)
        assert saving(driver) == []

    def test_what_would_be_evicted_next_is_saved_first(self) -> None:
        driver = driver_with(tier("write_back"), slots=64)
        for number in range(57):
            driver.store(tokens(number))
        coldest = [entry.key for entry in driver.ranked][:8]
        assert [each for _, each in saving(driver)] == coldest

    def test_saving_changes_no_rank(self) -> None:
        driver = driver_with(tier("write_back"), slots=64)
        for number in range(60):
            driver.store(tokens(number))
        before = [entry.key for entry in driver.ranked]
        driver.work_in_l2()
        assert saved(driver, tokens(0)) == 1
        assert [entry.key for entry in driver.ranked] == before
        assert_nothing_is_held(driver)

    def test_with_a_storage_that_keeps_up_every_victim_was_saved(self) -> None:
        driver = driver_with(tier("write_back"), slots=64)
        driver.storage.working = True
        for number in range(500):
            driver.store(tokens(number))
        assert driver.cache.counters.evicted_objects == 436
        assert report(driver).unsaved_evictions == 0
        assert saved(driver, tokens(400)) == 1

    def test_victims_that_were_not_saved_are_counted_and_nobody_waits(self) -> None:
        driver = driver_with(tier("write_back"), slots=64)
        for number in range(200):
            assert driver.store(tokens(number)) == [b"", True]
        assert driver.cache.counters.evicted_objects == 136
        assert report(driver).unsaved_evictions == 136
        assert report(driver).dropped_saves == 0

    def test_with_other_policies_nobody_counts_victims(self) -> None:
        driver = driver_with(tier("selective"), slots=8)
        for number in range(20):
            driver.store(tokens(number))
        assert report(driver).unsaved_evictions == 0

    def test_what_is_in_use_has_its_turn_later(self) -> None:
        driver = driver_with(tier("write_back"), slots=64)
        driver.store(tokens(0))
        driver.lookup(tokens(0))
        for number in range(1, 60):
            driver.store(tokens(number))
        driver.work_in_l2()
        assert saved(driver, tokens(0)) == 0
        assert saved(driver, tokens(1)) == 1

    def test_a_tick_saves_what_did_not_fit_before(self) -> None:
        driver = driver_with(tier("write_back"), slots=64)
        for number in range(60):
            driver.store(tokens(number))
        driver.work_in_l2("unavailable")
        assert saving(driver) == []
        driver.tick(1)
        assert len(saving(driver)) == 8

    def test_when_the_server_drains_all_is_saved_the_hottest_first(self) -> None:
        driver = driver_with(tier("write_back"), slots=64)
        for number in range(20):
            driver.store(tokens(number))
        hottest = [entry.key for entry in driver.ranked][::-1]
        driver.tell(Drain())
        assert [each for _, each in saving(driver)] == hottest[:16]
        assert driver.report().running_saves == 20
        driver.work_in_l2()
        assert driver.report().running_saves == 0
        assert len(driver.storage.keys["t"]) == 20

    def test_a_drain_ends_though_the_storage_fails(self) -> None:
        driver = driver_with(tier("write_back"), slots=64)
        for number in range(20):
            driver.store(tokens(number))
        driver.tell(Drain())
        driver.work_in_l2("unavailable")
        assert_nothing_is_held(driver)

    def test_what_goes_while_the_server_drains_is_passed_over(self) -> None:
        driver = driver_with(tier("write_back"), slots=64)
        for number in range(20):
            driver.store(tokens(number))
        driver.tell(Drain())
        driver.tell(ClearAll())
        driver.work_in_l2()
        assert len(driver.storage.keys["t"]) == 16
        assert driver.cache.used == 0
        assert_nothing_is_held(driver)


class TestClearedTier:
    def test_what_was_saved_before_is_saved_again(self) -> None:
        driver = driver_with(tier("selective", selective_uses=1))
        driver.store(tokens(1))
        driver.lookup(tokens(1))
        driver.work_in_l2()
        driver.storage.keys["t"].clear()
        driver.handle(TierCleared(driver.now, "t"))
        driver.lookup(tokens(1))
        driver.work_in_l2()
        assert saved(driver, tokens(1)) == 1

    def test_what_was_counted_stays_counted(self) -> None:
        driver = driver_with(tier("write_back"), slots=8)
        for number in range(40):
            driver.store(tokens(number))
        before = report(driver).unsaved_evictions
        assert before
        driver.handle(TierCleared(driver.now, "t"))
        assert report(driver).unsaved_evictions == before
        driver.store(tokens(50, 4))
        assert report(driver).unsaved_evictions > before

    def test_a_tier_that_is_not_there_any_more_is_nobodys_business(self) -> None:
        assert driver_with(tier()).handle(TierCleared(0.0, "gone")) == []


class TestSelective:
    def test_what_was_used_often_enough_is_saved(self) -> None:
        driver = driver_with(tier("selective", selective_uses=2))
        driver.store(tokens(1, 2))
        driver.lookup(tokens(1, 2))
        assert saving(driver) == []
        driver.lookup(tokens(1, 1))
        assert len(saving(driver)) == 1
        driver.work_in_l2()
        driver.lookup(tokens(1, 2))
        driver.work_in_l2()
        assert saved(driver, tokens(1, 2)) == 2
        driver.lookup(tokens(1, 2))
        assert saving(driver) == []

    def test_each_tier_counts_for_itself(self) -> None:
        driver = driver_with(tier("selective", "a", selective_uses=1), tier("selective", "b", selective_uses=2))
        driver.store(tokens(1))
        for names in (["a"], ["b"], []):
            driver.lookup(tokens(1))
            assert [name for name, _ in saving(driver)] == names
            driver.work_in_l2()


class TestSkipL1:
    def test_what_is_saved_leaves_l1(self) -> None:
        driver = driver_with(tier("skip_l1"))
        driver.store(tokens(1, 2))
        assert driver.cache.ready_objects == 2
        driver.work_in_l2()
        assert driver.cache.used == 0
        driver.storage.working = True
        assert driver.lookup(tokens(1, 2)) == 2

    def test_what_could_not_be_saved_stays(self) -> None:
        driver = driver_with(tier("skip_l1"))
        driver.store(tokens(1, 2))
        driver.work_in_l2("full")
        assert driver.cache.ready_objects == 2
        assert_nothing_is_held(driver)

    def test_what_is_in_use_stays(self) -> None:
        driver = driver_with(tier("skip_l1"))
        driver.store(tokens(1, 2))
        driver.lookup(tokens(1))
        driver.work_in_l2()
        assert driver.cache.ready_objects == 1
        assert driver.retrieve(tokens(1)) == [b"", True]
        assert_nothing_is_held(driver)

    @pytest.mark.parametrize("first", ["a", "b"])
    def test_it_leaves_when_the_last_tier_has_it_whichever_that_is(self, first: str) -> None:
        driver = driver_with(tier("skip_l1", "a"), tier("write_through", "b"))
        driver.store(tokens(1))
        saves = sorted(driver.asked(Save), key=lambda save: save.tier != first)
        driver.answer(saves[0])
        assert driver.cache.ready_objects == 1
        driver.answer(saves[1])
        assert driver.cache.used == 0
        assert_nothing_is_held(driver)

    def test_what_was_loaded_from_it_stays(self) -> None:
        driver = driver_with(tier("skip_l1"))
        driver.storage.working = True
        driver.store(tokens(1))
        driver.lookup(tokens(1))
        driver.end()
        assert driver.cache.ready_objects == 1
        assert_nothing_is_held(driver)


class TestChanges:
    def test_a_paused_tier_is_given_nothing(self) -> None:
        driver = driver_with(tier())
        driver.tell(PauseTier("t", True))
        driver.store(tokens(1))
        assert saving(driver) == []
        assert report(driver).is_paused
        driver.tell(PauseTier("t", False))
        driver.store(tokens(2))
        assert len(saving(driver)) == 1

    def test_a_tier_that_is_paused_while_the_server_drains_gets_no_more(self) -> None:
        driver = driver_with(tier("write_back"), slots=64)
        for number in range(20):
            driver.store(tokens(number))
        driver.tell(Drain())
        driver.tell(PauseTier("t", True))
        driver.work_in_l2()
        assert len(driver.storage.keys["t"]) == 16
        assert driver.report().running_saves == 0

    def test_tiers_may_go_while_they_save(self) -> None:
        driver = driver_with(tier(name="a"), tier(name="b"))
        driver.store(tokens(1, 2))
        driver.tell(ConfigureTiers((tier(name="b"),)))
        driver.work_in_l2("unavailable")
        assert_nothing_is_held(driver)
        driver.store(tokens(2))
        assert [name for name, _ in saving(driver)] == ["b"]

    def test_another_tier_of_the_same_name_has_nothing_yet(self) -> None:
        driver = driver_with(tier("selective", selective_uses=1))
        driver.store(tokens(1))
        driver.lookup(tokens(1))
        driver.work_in_l2()
        driver.tell(ConfigureTiers((tier("selective", selective_uses=1, options={"capacity": 1}),)))
        driver.lookup(tokens(1))
        assert len(saving(driver)) == 1

    def test_another_policy_is_in_force_at_once(self) -> None:
        driver = driver_with(tier("selective", selective_uses=9))
        driver.store(tokens(1))
        driver.tell(ConfigureTiers((tier(),)))
        driver.store(tokens(2))
        assert len(saving(driver)) == 1


class TestDamage:
    """A tier has found that what it has of an object is not what was saved."""

    def test_what_l1_has_is_saved_there_anew_and_nothing_else_is(self) -> None:
        driver = driver_with(tier(name="other"), tier())
        driver.store(tokens(1, 2))
        driver.work_in_l2()
        one, _ = driver.cache._entries
        driver.handle(TierDamaged(driver.now, "t", one))
        assert saving(driver) == [("t", one)]
        driver.work_in_l2()
        assert_nothing_is_held(driver)

    def test_what_is_being_saved_is_not_saved_twice(self) -> None:
        driver = driver_with(tier())
        driver.store(tokens(1))
        [(_, one)] = saving(driver)
        driver.handle(TierDamaged(driver.now, "t", one))
        assert saving(driver) == [("t", one)]

    def test_into_a_paused_tier_nothing_is_saved_until_it_is_used_again(self) -> None:
        driver = driver_with(tier("selective", selective_uses=1))
        driver.store(tokens(1))
        driver.lookup(tokens(1))
        driver.work_in_l2()
        [one] = driver.cache._entries
        driver.tell(PauseTier("t", True))
        driver.handle(TierDamaged(driver.now, "t", one))
        assert saving(driver) == []
        driver.tell(PauseTier("t", False))
        driver.lookup(tokens(1))
        assert saving(driver) == [("t", one)]

    @pytest.mark.parametrize("name", ["t", "gone"])
    def test_where_l1_has_not_got_it_or_the_tier_is_gone_nothing_happens(self, name: str) -> None:
        driver = driver_with(tier())
        driver.handle(TierDamaged(driver.now, name, b"k" * 48))
        assert saving(driver) == []
