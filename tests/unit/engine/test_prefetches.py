"""Prefetches: what L2 has of a prompt is found and loaded while its request waits no longer than it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from engine import L2Settings, Liveness
from engine.commands import ClearAll, ConfigureTiers, Drain, FindJob, PauseTier, Shrink, StartPrefetch
from engine.discovery import policy_maker
from engine.errors import PrefetchError
from engine.events import Find, Found, Load, Loaded, Save, TransfersEnded
from engine.hashing import hash_tokens
from engine.settings import PrefetchMode, PrefetchSettings
from engine.tiers import LONGEST_WAIT, Tiers, patience
from engine.wire import messages as m
from tests.unit.engine.driver import Driver
from tests.unit.engine.support import key, packed

TOKENS = list(range(64))
"""Four chunks."""
OTHERS = list(range(1000, 1064))
TIMEOUT = PrefetchSettings("timeout", base_ms=1000, per_1024_tokens_ms=0, cap_ms=5000)


def tier(name: str = "t", mode: PrefetchMode = "timeout", **more: Any) -> L2Settings:
    return L2Settings("memory", name, prefetch=replace(TIMEOUT, mode=mode), **more)


def driver_with(*tiers: L2Settings, slots: int = 100, world_size: int = 1, **more: Any) -> Driver:
    """An engine whose L2 has `TOKENS` in the last of its tiers, and does nothing from now on until a test says so."""
    driver = Driver(slots, tiers=tiers, **more)
    for shard in range(world_size):
        driver.register(shard + 1, world_size=world_size)
        driver.store(TOKENS, shard + 1, worker_id=shard, world_size=world_size)
    for each in tiers:
        driver.storage.keys[each.name].clear()
    driver.storage.keys[tiers[-1].name] = set(driver.cache._entries)
    driver.tell(ClearAll())
    driver.storage.working = False
    return driver


@pytest.fixture
def driver() -> Driver:
    return driver_with(tier())


def chunk_of(load: Load | Save) -> int:
    """Which chunk of `TOKENS` it is about."""
    return list(hash_tokens(TOKENS, 16)).index(load.slot.key[16:])


def chunks(driver: Driver) -> list[int]:
    """Those that are being loaded."""
    return [chunk_of(load) for load in driver.asked(Load)]


def lose(driver: Driver, *lost: int, name: str = "t") -> None:
    """A tier does not have these chunks of `TOKENS`."""
    hashes = list(hash_tokens(TOKENS, 16))
    gone = [hashes[chunk] for chunk in lost]
    driver.storage.keys[name] = {each for each in driver.storage.keys[name] if each[16:] not in gone}


def load(driver: Driver, *wanted: int, outcome: Any = "done") -> None:
    """Ends the loads of these chunks."""
    for task in [task for task in driver.asked(Load) if chunk_of(task) in wanted]:
        driver.answer(task, outcome)


def assert_nothing_is_held(driver: Driver) -> None:
    assert driver.cache.objects_in_use == (0, 0)
    assert driver.cache._borrowed == 0
    assert driver.report().active_prefetch_jobs == 0


def reasons(driver: Driver) -> dict[str, int]:
    return {reason: count for reason, count in driver.report().l1.missed_lookups if count}


class TestLoading:
    def test_what_l1_has_lost_is_found_in_l2(self, driver: Driver) -> None:
        driver.storage.working = True
        assert driver.lookup(TOKENS) == 4
        assert driver.leased == 4
        assert driver.retrieve(TOKENS) == [b"", True]
        assert_nothing_is_held(driver)
        assert driver.lookup(TOKENS, request_id="again") == 4
        assert driver.report().lookups.prefetched_chunks == 4

    def test_what_l1_has_evicted_is_found_in_l2(self) -> None:
        driver = Driver(40, tiers=[tier()])
        driver.register()
        driver.store(TOKENS)
        for start in range(1000, 2000, 64):
            driver.store(range(start, start + 64))
        assert driver.look(TOKENS).reason == "evicted"
        assert driver.lookup(TOKENS) == 4
        driver.end()
        assert driver.lookup(OTHERS) == 4

    def test_it_is_not_known_until_it_is_loaded_and_then_told_once(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        assert driver.query() is None
        driver.work_in_l2(kind=Find)
        assert driver.query() is None
        driver.work_in_l2()
        assert driver.query() == 4
        assert driver.query() == 0

    def test_what_neither_has_is_known_when_l2_has_said_so(self, driver: Driver) -> None:
        driver.look_up(OTHERS)
        assert driver.query() is None
        driver.work_in_l2()
        assert driver.query() == 0
        assert reasons(driver) == {"never_stored": 1}

    def test_only_what_l1_does_not_have_is_asked_for(self, driver: Driver) -> None:
        driver.store(TOKENS[:32])
        driver.work_in_l2()
        driver.look_up(TOKENS)
        (find,) = driver.asked(Find)
        assert [each[16:] for each in find.keys] == list(hash_tokens(TOKENS, 16))[2:]
        driver.work_in_l2()
        assert driver.query() == 4
        assert driver.leased == 4

    def test_nothing_is_asked_when_l1_has_all(self, driver: Driver) -> None:
        driver.store(TOKENS)
        driver.work_in_l2()
        assert driver.lookup(TOKENS) == 4
        assert driver.storage.pending == []

    def test_loads_are_asked_for_in_prefix_order(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        assert chunks(driver) == [0, 1, 2, 3]

    @pytest.mark.parametrize("order", [(3, 1, 0, 2), (1, 2, 3, 0)])
    def test_they_may_come_in_any_order(self, driver: Driver, order: tuple[int, ...]) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        for chunk in order:
            assert driver.query() is None
            load(driver, chunk)
        assert driver.query() == 4

    def test_whatever_the_order_suffixes_go_before_prefixes(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        for chunk in (3, 1, 0, 2):
            load(driver, chunk)
        driver.query()
        driver.end()
        assert [entry.key[16:] for entry in driver.ranked] == list(hash_tokens(TOKENS, 16))[::-1]

    def test_the_chunks_behind_a_gap_are_not_loaded(self, driver: Driver) -> None:
        lose(driver, 2)
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        assert chunks(driver) == [0, 1]
        driver.work_in_l2()
        assert driver.query() == 2

    def test_a_gap_in_l1_is_filled_and_what_stands_behind_it_is_used(self, driver: Driver) -> None:
        driver.storage.working = True
        driver.lookup(TOKENS)
        driver.end()
        driver.cache.doom(driver.cache._entries[driver.ranked[2].key], "cleared")
        driver.storage.working = False
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        assert chunks(driver) == [1]
        driver.work_in_l2()
        assert driver.query() == 4
        assert driver.leased == 4

    def test_two_requests_share_one_load(self, driver: Driver) -> None:
        for request_id in ("a", "b"):
            driver.look_up(TOKENS, request_id=request_id)
        driver.work_in_l2(kind=Find)
        assert chunks(driver) == [0, 1, 2, 3]
        driver.work_in_l2()
        assert [driver.query("a"), driver.query("b")] == [4, 4]
        driver.end("a")
        assert driver.leased == 4
        driver.end("b")
        assert_nothing_is_held(driver)

    def test_a_request_joins_what_another_one_loads_already(self, driver: Driver) -> None:
        driver.look_up(TOKENS[:32], request_id="a")
        driver.work_in_l2(kind=Find)
        driver.look_up(TOKENS, request_id="b")
        (find,) = driver.asked(Find)
        assert len(find.keys) == 2
        driver.work_in_l2()
        assert [driver.query("a"), driver.query("b")] == [2, 4]

    def test_a_chunk_counts_when_every_shard_has_it(self) -> None:
        driver = driver_with(tier(), world_size=2)
        second = driver.storage.keys["t"] = set(driver.storage.keys["t"])
        lost = next(each for each in sorted(second) if each[16:] == list(hash_tokens(TOKENS, 16))[3])
        second.remove(lost)
        driver.look_up(TOKENS, world_size=2)
        driver.work_in_l2(kind=Find)
        assert sorted(chunks(driver)) == [0, 0, 1, 1, 2, 2]
        for task in driver.asked(Load)[1:]:
            driver.answer(task)
        assert driver.query() is None
        driver.work_in_l2()
        assert driver.query() == 3
        assert driver.leased == 6
        driver.end()
        assert_nothing_is_held(driver)

    def test_a_worker_may_store_what_is_being_looked_for(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.store(TOKENS[:16])
        driver.work_in_l2(kind=Find)
        assert chunks(driver) == [1, 2, 3]
        driver.work_in_l2()
        assert driver.query() == 4

    def test_what_is_being_loaded_is_not_stored_twice(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        assert driver.reserved == 4
        assert driver.store(TOKENS) == [b"", True]
        driver.work_in_l2()
        assert driver.query() == 4
        assert driver.report().l1.total_object_count == 4

    def test_what_a_worker_is_writing_is_not_waited_for(self, driver: Driver) -> None:
        driver.working = False
        wanted = key(TOKENS[:16], worker_id=0)
        driver.start(m.Store(wanted, 1, [[1, 2]], b"stub"))
        driver.look_up(TOKENS)
        driver.work_in_l2()
        assert driver.query() == 0
        assert reasons(driver) == {"being_written": 1}

    def test_readers_each_get_their_share(self, driver: Driver) -> None:
        driver.look_up(TOKENS, num_kv_readers=2)
        driver.work_in_l2()
        driver.query()
        for _ in range(2):
            assert driver.leased == 4
            driver.retrieve(TOKENS)
        assert_nothing_is_held(driver)

    def test_tokens_that_are_none_are_refused_before_anything_is_asked(self, driver: Driver) -> None:
        wide = list(range(70_000, 70_064))  # so wide that the first chunk is recognised, and not decoded with the rest
        driver.store(wide[:16])
        driver.work_in_l2()
        bad = replace_tokens(key(wide), [*wide[:60], "x", *wide[61:]])
        assert driver.ask(m.Lookup(bad, packed(1))) is None
        assert (driver.query(), driver.leased, driver.storage.pending) == (0, 0, [])


def replace_tokens(wanted: m.Key, tokens: list[object]) -> m.Key:
    return msgspec.structs.replace(wanted, token_ids=msgspec.Raw(packed(tokens)))


class TestRoom:
    def test_what_finds_no_room_ends_the_prefix(self) -> None:
        driver = driver_with(tier(), slots=4)
        driver.store(OTHERS[:32])
        assert driver.lookup(OTHERS[:32], request_id="holds two") == 2
        driver.work_in_l2()
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        assert chunks(driver) == [0, 1]
        driver.work_in_l2()
        assert driver.query() == 2
        assert driver.cache.counters.refused_objects["in_use"] == 1

    def test_when_nothing_can_be_loaded_the_answer_is_at_once(self) -> None:
        driver = driver_with(tier(), slots=4)
        driver.store(OTHERS)
        driver.lookup(OTHERS, request_id="holds all")
        driver.work_in_l2()
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        assert driver.query() == 0
        assert driver.storage.pending == []


class TestPatience:
    def test_after_its_time_the_answer_is_what_is_there(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        load(driver, 0, 1, 3)
        driver.wait(0.99)
        assert driver.query() is None
        driver.wait(0.02)
        assert driver.query() == 2
        assert driver.leased == 2
        driver.end()
        driver.work_in_l2()
        assert_nothing_is_held(driver)
        driver.storage.working = True
        assert driver.lookup(TOKENS) == 4

    def test_a_tier_that_does_not_say_what_it_has_is_not_waited_for_longer(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.wait(1.0)
        assert driver.query() == 0
        driver.work_in_l2()
        assert driver.report().l1.total_object_count == 4
        assert_nothing_is_held(driver)

    def test_best_effort_answers_at_the_first_question_and_loads_for_the_next_request(self) -> None:
        driver = driver_with(tier(mode="best_effort"))
        driver.look_up(TOKENS)
        assert driver.query() == 0
        driver.work_in_l2()
        assert_nothing_is_held(driver)
        driver.look_up(TOKENS, request_id="next")
        assert driver.query("next") == 4

    def test_best_effort_takes_what_has_come_by_then(self) -> None:
        driver = driver_with(tier(mode="best_effort"))
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        load(driver, 0, 1)
        assert driver.query() == 2

    def test_wait_waits_long_and_not_for_ever(self) -> None:
        driver = driver_with(tier(mode="wait"))
        driver.look_up(TOKENS)
        driver.wait(LONGEST_WAIT - 0.1)
        assert driver.query() is None
        driver.wait(0.2)
        assert driver.query() == 0

    def test_a_slow_tier_that_is_asked_for_later_chunks_does_not_end_the_wait_for_earlier_ones(self) -> None:
        driver = driver_with(tier("fast", "wait"), tier("slow", "best_effort"))
        driver.storage.keys["fast"], driver.storage.keys["slow"] = driver.storage.keys["slow"], set()
        lose(driver, 2, 3, name="fast")
        driver.look_up(TOKENS)
        driver.answer(driver.asked(Find)[0])
        assert [find.tier for find in driver.asked(Find)] == ["slow"]
        assert chunks(driver) == [0, 1]
        assert driver.query() is None
        load(driver, 0, 1)
        assert driver.query() == 2

    def test_the_tier_that_is_waited_for_decides_how_long(self) -> None:
        driver = driver_with(tier("fast", "best_effort"), tier("slow", "wait"))
        driver.look_up(TOKENS)
        driver.answer(driver.asked(Find)[0])
        assert driver.query() is None
        driver.work_in_l2()
        assert driver.query() == 4

    @pytest.mark.parametrize(
        ("settings", "tokens", "seconds"),
        [
            (PrefetchSettings("timeout", 500, 100, 5000), 0, 0.5),
            (PrefetchSettings("timeout", 500, 100, 5000), 10_240, 1.5),
            (PrefetchSettings("timeout", 500, 100, 5000), 1_000_000, 5.0),
            (PrefetchSettings("timeout", 500, 100, 1e9), 10_000_000, LONGEST_WAIT),
            (PrefetchSettings("wait", 500, 100, 5000), 0, LONGEST_WAIT),
            (PrefetchSettings("best_effort", 500, 100, 5000), 10_240, float("-inf")),
        ],
    )
    def test_it_grows_with_the_prompt_up_to_a_limit(
        self, settings: PrefetchSettings, tokens: int, seconds: float
    ) -> None:
        assert patience(settings, tokens) == seconds


class TestFailures:
    @pytest.mark.parametrize("outcome", ["absent", "unavailable", "late", "busy", "damaged", "refused"])
    def test_what_does_not_come_ends_the_prefix(self, driver: Driver, outcome: str) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        load(driver, 2, outcome=outcome)
        assert driver.query() is None
        driver.work_in_l2()
        assert driver.query() == 2
        driver.end()
        assert_nothing_is_held(driver)
        assert driver.report().l1.total_object_count == 3

    def test_a_failing_first_chunk_is_an_answer_at_once(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        load(driver, 0, outcome="unavailable")
        assert driver.query() == 0
        driver.work_in_l2()
        assert_nothing_is_held(driver)

    def test_a_tier_that_cannot_tell_what_it_has_has_nothing(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2("unavailable")
        assert driver.query() == 0

    def test_what_was_damaged_is_told_as_the_reason(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        load(driver, 0, outcome="damaged")
        assert driver.query() == 0
        assert reasons(driver) == {"quarantined": 1}
        assert driver.look(TOKENS).reason == "quarantined"

    def test_the_reason_is_that_of_the_object_that_is_missing_in_its_row(self) -> None:
        driver = driver_with(tier(), world_size=2)
        driver.look_up(TOKENS, world_size=2)
        driver.work_in_l2(kind=Find)
        row = [task for task in driver.asked(Load) if chunk_of(task) == 0]
        driver.answer(row[0])
        driver.answer(row[1], "damaged")
        assert driver.query() == 0
        assert reasons(driver) == {"quarantined": 1}

    def test_what_one_tier_fails_to_load_the_next_one_is_asked_for(self) -> None:
        driver = driver_with(tier("fast"), tier("slow"))
        driver.storage.keys["fast"] = set(driver.storage.keys["slow"])
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        assert {task.tier for task in driver.asked(Load)} == {"fast"}
        for chunk in (1, 2):
            load(driver, chunk, outcome="unavailable")
        assert [(find.tier, len(find.keys)) for find in driver.asked(Find)] == [("slow", 1), ("slow", 1)]
        assert driver.query() is None
        driver.work_in_l2(kind=Find)
        assert [(chunk_of(task), task.tier) for task in driver.asked(Load)] == [
            (0, "fast"),
            (3, "fast"),
            (1, "slow"),
            (2, "slow"),
        ]
        driver.work_in_l2(kind=Load)
        assert driver.query() == 4

    def test_when_the_last_tier_fails_too_that_was_all(self) -> None:
        driver = driver_with(tier("fast"), tier("slow"))
        driver.storage.keys["fast"] = set(driver.storage.keys["slow"])
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        load(driver, 1, outcome="damaged")
        driver.work_in_l2(kind=Find)
        load(driver, 1, outcome="unavailable")
        driver.work_in_l2()
        assert driver.query() == 1
        driver.end()
        assert_nothing_is_held(driver)


class TestSeveralTiers:
    def test_each_is_asked_for_what_those_before_it_do_not_have(self) -> None:
        driver = driver_with(tier("a"), tier("b"), tier("c"))
        everything = driver.storage.keys["c"]
        for name, lost in (("a", (1, 2, 3)), ("b", (0, 2, 3)), ("c", (0, 1))):
            driver.storage.keys[name] = set(everything)
            lose(driver, *lost, name=name)
        driver.look_up(TOKENS)
        asked = []
        while finds := driver.asked(Find):
            asked.append((finds[0].tier, len(finds[0].keys)))
            driver.answer(finds[0])
        assert asked == [("a", 4), ("b", 3), ("c", 2)]
        assert [task.tier for task in driver.asked(Load)] == ["a", "b", "c", "c"]
        driver.work_in_l2()
        assert driver.query() == 4

    def test_what_the_first_has_is_loaded_while_the_second_is_asked(self) -> None:
        driver = driver_with(tier("a"), tier("b"))
        driver.storage.keys["a"] = set(driver.storage.keys["b"])
        lose(driver, 2, name="a")
        driver.look_up(TOKENS)
        driver.answer(driver.asked(Find)[0])
        assert chunks(driver) == [0, 1]
        driver.answer(driver.asked(Find)[0])
        assert chunks(driver) == [0, 1, 2, 3]

    def test_what_came_from_a_slow_tier_is_saved_to_the_faster_ones(self) -> None:
        driver = driver_with(tier("a"), tier("b", promote=False), tier("c"))
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        driver.work_in_l2(kind=Load)
        assert {save.tier for save in driver.asked(Save)} == {"a"}
        driver.work_in_l2()
        assert driver.storage.keys["a"] == driver.storage.keys["c"]
        driver.query()
        driver.end()
        assert_nothing_is_held(driver)

    def test_a_paused_tier_is_asked_nothing_until_it_is_resumed(self) -> None:
        driver = driver_with(tier("a"), tier("b"))
        assert driver.tell(PauseTier("b", True)) is True
        assert driver.tell(PauseTier("c", True)) is False
        driver.look_up(TOKENS)
        driver.work_in_l2()
        assert driver.query() == 0
        driver.tell(PauseTier("b", False))
        driver.look_up(TOKENS)
        driver.work_in_l2()
        assert driver.query() == 4

    def test_a_tier_that_is_paused_after_it_has_said_what_it_has_is_not_asked_for_it(self) -> None:
        driver = driver_with(tier("a"), tier("b"))
        driver.storage.keys["a"] = set(driver.storage.keys["b"])
        lose(driver, 0, name="a")
        driver.look_up(TOKENS)
        driver.answer(driver.asked(Find)[0])
        driver.tell(PauseTier("a", True))
        driver.work_in_l2()
        assert driver.query() == 1

    def test_with_all_tiers_paused_lookups_are_answered_at_once(self, driver: Driver) -> None:
        driver.tell(PauseTier("t", True))
        driver.look_up(TOKENS)
        assert (driver.query(), driver.storage.pending) == (0, [])

    def test_tiers_may_go_while_they_load(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        load(driver, 0)
        driver.storage.keys["new"] = set()
        driver.tell(ConfigureTiers((tier("new"),)))
        load(driver, 1)
        load(driver, 2, 3, outcome="unavailable")
        driver.work_in_l2()
        assert driver.query() == 2
        driver.end()
        assert_nothing_is_held(driver)

    def test_a_tier_that_stays_keeps_what_is_known_of_it(self) -> None:
        tiers = Tiers((tier("a"), tier("b")))
        a, b = tiers
        tiers.configure((tier("b", store_policy="write_back"), tier("c"), tier("a", options={"capacity": 1})))
        assert [each.name for each in tiers] == ["b", "c", "a"]
        assert tiers.find("b") is b
        assert b.settings.store_policy == "write_back"
        assert tiers.find("a") is not a
        assert len({each.bit for each in [a, *tiers]}) == 4

    def test_no_tier_at_all_is_as_without_l2(self, driver: Driver) -> None:
        driver.tell(ConfigureTiers(()))
        driver.look_up(TOKENS)
        assert (driver.query(), driver.storage.pending) == (0, [])


ENDS: dict[str, Callable[[Driver], None]] = {
    "end_session": lambda driver: driver.end(),
    "another lookup of the request": lambda driver: (driver.look_up(OTHERS[:16]), driver.work_in_l2(), driver.end()),  # type: ignore[dict-item]
    "the end of its leases": lambda driver: (driver.tick(301), driver.end()),  # type: ignore[dict-item]
    "the end of its session": lambda driver: driver.tick(601),
    "an answer before all has come": lambda driver: (driver.wait(2), driver.query(), driver.end()),  # type: ignore[dict-item]
}


class TestWhoeverIsGone:
    @pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
    @pytest.mark.parametrize("loaded", [(), (0,), (1, 2), (0, 1, 2, 3)])
    @pytest.mark.parametrize("found", [True, False])
    def test_nothing_is_held_for_it(
        self, driver: Driver, end: Callable[[Driver], None], loaded: tuple[int, ...], found: bool
    ) -> None:
        driver.look_up(TOKENS, num_kv_readers=3)
        if found:
            driver.work_in_l2(kind=Find)
            load(driver, *loaded)
        end(driver)
        assert driver.leased == 0
        driver.work_in_l2()
        assert_nothing_is_held(driver)
        driver.look_up(TOKENS)
        assert driver.query() == 4

    def test_others_who_wait_for_the_same_still_get_it(self, driver: Driver) -> None:
        for request_id in ("a", "b"):
            driver.look_up(TOKENS, request_id=request_id)
        driver.work_in_l2(kind=Find)
        driver.end("a")
        driver.work_in_l2()
        assert driver.query("b") == 4

    def test_what_comes_after_it_is_ranked_with_its_prompt(self, driver: Driver) -> None:
        driver.store(TOKENS[:16])
        driver.work_in_l2()
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        driver.end()
        driver.work_in_l2()
        assert [entry.key[16:] for entry in driver.ranked] == list(hash_tokens(TOKENS, 16))[::-1]

    def test_what_came_behind_a_gap_is_ranked_with_its_prompt(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        for chunk in (3, 2):
            load(driver, chunk)
        load(driver, 0, outcome="absent")
        load(driver, 1)
        assert driver.query() == 0
        assert [entry.key[16:] for entry in driver.ranked] == list(hash_tokens(TOKENS, 16))[:0:-1]


class TestClear:
    def test_what_is_being_loaded_when_all_is_cleared_does_not_appear(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        load(driver, 0)
        driver.tell(ClearAll())
        driver.work_in_l2()
        assert driver.cache.ready_objects == 0
        assert driver.query() == 1
        assert driver.retrieve(TOKENS[:16]) == [b"", True]
        assert driver.cache.used == 0
        assert_nothing_is_held(driver)

    def test_what_was_stored_again_meanwhile_is_what_is_there(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        driver.tell(ClearAll())
        driver.store(TOKENS)
        driver.work_in_l2(kind=Load)
        assert driver.cache.ready_objects == 4
        assert driver.query() == 0
        assert driver.lookup(TOKENS, request_id="next") == 4

    def test_a_failed_load_goes_on_past_what_was_stored_again(self) -> None:
        """One load is doomed and its object stored anew, an earlier one falls to the next tier, and the walk over the
        chunks takes the new object; then the doomed load ends.
        """
        driver = driver_with(tier("a"), tier("b"))
        driver.storage.keys["a"] = set(driver.storage.keys["b"])
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        (second,) = [task for task in driver.asked(Load) if chunk_of(task) == 1]
        driver.cache.doom(driver.cache._entries[second.slot.key], "cleared")
        load(driver, 0, outcome="unavailable")
        driver.store(TOKENS[:32], block_ids=[[1, 2, 3, 4]])
        driver.work_in_l2(kind=Find)
        load(driver, 0, 1, 2, 3)
        assert driver.query() == 4
        driver.end()
        driver.work_in_l2()
        assert_nothing_is_held(driver)


class TestWaiting:
    """`wait_prefetch_status` is answered when the result is known, or with nil when its time is over."""

    @staticmethod
    def begin(driver: Driver, timeout: float, request_id: str = "r") -> bytes:
        return driver.start(m.WaitPrefetchStatus(request_id, timeout))

    def test_it_is_answered_when_all_has_come(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        uid = self.begin(driver, 9.0)
        driver.work_in_l2(kind=Find)
        load(driver, 0, 1, 2)
        assert uid not in driver.replies
        load(driver, 3)
        assert driver.replies[uid] == 4
        assert driver.query() == 0

    def test_it_is_answered_with_nil_after_its_own_time(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        uid = self.begin(driver, 0.5)
        assert driver.engine.due == 0.5
        driver.wait(0.5)
        assert driver.replies[uid] is None
        assert driver.engine.due == float("inf")
        driver.work_in_l2()
        assert driver.query() == 4

    def test_it_is_answered_with_what_is_there_when_the_patience_is_over(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2(kind=Find)
        load(driver, 0)
        uid = self.begin(driver, 9.0)
        assert driver.engine.due == 1.0
        driver.wait(1.0)
        assert driver.replies[uid] == 1

    @pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
    def test_who_has_no_time_is_answered_at_once(self, driver: Driver, timeout: float) -> None:
        driver.look_up(TOKENS)
        assert driver.replies[self.begin(driver, timeout)] is None
        driver.work_in_l2()
        assert driver.replies[self.begin(driver, timeout)] == 4

    def test_who_waits_for_ever_is_answered_all_the_same(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        uid = self.begin(driver, float("inf"))
        driver.wait(1.0)
        assert driver.replies[uid] == 0

    def test_of_two_who_wait_one_gets_it(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        one, other = self.begin(driver, 9.0), self.begin(driver, 9.0)
        driver.work_in_l2()
        assert [driver.replies[one], driver.replies[other]] == [4, 0]

    def test_an_unknown_request_has_nothing(self, driver: Driver) -> None:
        assert driver.replies[self.begin(driver, 9.0, "unknown")] == 0

    @pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
    def test_whoever_is_gone_is_answered(self, driver: Driver, end: Callable[[Driver], None]) -> None:
        driver.look_up(TOKENS)
        uid = self.begin(driver, 1000.0)
        end(driver)
        assert driver.replies[uid] == 0

    def test_a_stop_answers_it(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        uid = self.begin(driver, 9.0)
        driver.tell(Drain())
        assert uid not in driver.replies
        driver.handle(TransfersEnded(driver.now, "the server is stopping"))
        assert driver.replies[uid] == 0
        driver.work_in_l2()

    def test_while_the_server_drains_what_was_begun_still_comes(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.tell(Drain())
        driver.work_in_l2()
        assert driver.query() == 4
        driver.look_up(TOKENS)
        assert (driver.query(), driver.leased) == (0, 0)


class TestFree:
    def test_while_it_is_not_known_nothing_is_given_back(self, driver: Driver) -> None:
        driver.store(TOKENS[:16])
        driver.work_in_l2()
        driver.look_up(TOKENS)
        driver.free(TOKENS)
        assert driver.leased == 1
        driver.work_in_l2()
        assert driver.query() == 4

    def test_when_it_is_known_it_is_given_back_without_having_been_asked_for(self, driver: Driver) -> None:
        driver.look_up(TOKENS)
        driver.work_in_l2()
        driver.free(TOKENS, end=32)
        assert driver.leased == 2
        assert driver.query() == 0


class TestWarming:
    @staticmethod
    def command(tokens: list[int], **more: Any) -> StartPrefetch:
        wanted = {"model_name": "m", "world_size": None, "cache_salt": "", **more}
        return StartPrefetch(**wanted, hashes=tuple(hash_tokens(tokens, 16)))

    def test_it_loads_before_anybody_asks_and_tells_how_far_it_is(self, driver: Driver) -> None:
        job = driver.tell(self.command(TOKENS))
        assert (job.kind, job.state, job.done, job.total) == ("prefetch", "running", 0, 4)
        driver.work_in_l2(kind=Find)
        load(driver, 0, 1)
        job = driver.tell(FindJob(job.id)) or job
        assert (job.state, job.done, job.objects, job.bytes) == ("running", 2, 2, 8192)
        driver.work_in_l2()
        job = driver.tell(FindJob(job.id)) or job
        assert (job.state, job.done, job.objects) == ("done", 4, 4)
        assert_nothing_is_held(driver)
        driver.look_up(TOKENS)
        assert (driver.query(), driver.storage.pending) == (4, [])

    def test_what_l1_has_is_done_already(self, driver: Driver) -> None:
        driver.store(TOKENS[:32])
        driver.work_in_l2()
        job = driver.tell(self.command(TOKENS))
        assert (job.done, job.objects) == (2, 0)
        driver.work_in_l2()
        job = driver.tell(FindJob(job.id)) or job
        assert (job.done, job.objects) == (4, 2)

    def test_with_all_of_it_in_l1_it_has_ended_at_once(self, driver: Driver) -> None:
        driver.store(TOKENS)
        job = driver.tell(self.command(TOKENS))
        assert (job.state, job.done) == ("done", 4)

    @pytest.mark.parametrize("outcome", ["unavailable", "damaged"])
    def test_it_ends_where_something_does_not_come(self, driver: Driver, outcome: str) -> None:
        job = driver.tell(self.command(TOKENS))
        driver.work_in_l2(kind=Find)
        load(driver, 1, outcome=outcome)
        driver.work_in_l2()
        job = driver.tell(FindJob(job.id)) or job
        assert (job.state, job.done) == ("done", 1)
        assert_nothing_is_held(driver)

    def test_a_request_shares_what_it_loads(self, driver: Driver) -> None:
        driver.tell(self.command(TOKENS))
        driver.work_in_l2(kind=Find)
        driver.look_up(TOKENS)
        assert driver.asked(Find) == []
        driver.work_in_l2()
        assert driver.query() == 4

    def test_what_cannot_be_loaded_is_refused(self, driver: Driver) -> None:
        with pytest.raises(PrefetchError, match="no worker of 'other'"):
            driver.order(self.command(TOKENS, model_name="other"))
        with pytest.raises(PrefetchError, match="no complete chunk"):
            driver.order(self.command(TOKENS[:15]))
        driver.tell(PauseTier("t", True))
        with pytest.raises(PrefetchError, match="no L2 tier"):
            driver.order(self.command(TOKENS))


def test_a_shrink_lets_loads_end_first() -> None:
    driver = driver_with(tier(), slots=8)
    driver.look_up(TOKENS)
    driver.work_in_l2(kind=Find)
    job = driver.tell(Shrink(2 * 4096))
    driver.run_jobs()
    assert (driver.tell(FindJob(job.id)) or job).state == "running"
    driver.work_in_l2()
    driver.run_jobs()
    driver.query()
    driver.end()
    driver.tick(1)
    driver.run_jobs()
    assert (driver.tell(FindJob(job.id)) or job).state == "done"
    assert driver.cache.used <= 2 * 4096
    assert_nothing_is_held(driver)


def test_what_was_before_it_may_be_gone_when_it_comes() -> None:
    """Nobody keeps the prefix of what is loaded before anybody asks; a policy must not be told of it any more."""
    driver = driver_with(tier(), slots=8, make_policy=policy_maker("hit_density"))
    driver.store(TOKENS[:32])
    driver.work_in_l2()
    driver.tell(TestWarming.command(TOKENS))
    driver.tell(ClearAll())
    driver.work_in_l2()
    for start in range(1000, 2000, 64):
        driver.store(range(start, start + 64))
    assert driver.report().l1.total_object_count == 8


def test_times_of_liveness_bound_what_is_held() -> None:
    driver = driver_with(tier(mode="wait"), liveness=Liveness(lease_ttl=1.0))
    driver.look_up(TOKENS)
    driver.work_in_l2(kind=Find)
    load(driver, 0)
    driver.tick(1.1)
    assert driver.leased == 0
    assert driver.query() == 0
    driver.work_in_l2()
    assert_nothing_is_held(driver)


def test_answers_belong_to_what_was_asked(driver: Driver) -> None:
    """The engine takes every answer once; one that nobody asked for is a defect that shows."""
    for event in (Found(0.0, 99, ()), Loaded(0.0, 99, "done")):
        with pytest.raises(KeyError):
            driver.handle(event)
