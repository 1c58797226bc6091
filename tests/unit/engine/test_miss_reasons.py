"""Why a chunk is not there: each reason by what really leads to it, told to operators and counted alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from engine import Liveness
from engine.commands import ClearAll, DeleteObjects, Selection, Shrink, StartClear
from engine.hashing import hash_tokens
from engine.keys import namespace
from engine.status import MissReason
from engine.wire import messages as m
from tests.unit.engine.driver import SLOT, Driver
from tests.unit.engine.support import HANDLE, cpu_tensor, key, register_engine_driven

TOKENS = list(range(16))
"""One chunk, in an L1 of one slot."""
OTHERS = list(range(100, 116))


def start_store(driver: Driver, tokens: list[int] = TOKENS) -> None:
    """A store whose copy does not end yet."""
    driver.working = False
    driver.start(m.Store(key(tokens, worker_id=0), 1, [[1, 2]], HANDLE))


def evict(driver: Driver) -> None:
    driver.store(TOKENS)
    driver.store(OTHERS)


def evict_by_shrinking(driver: Driver) -> None:
    driver.store(TOKENS)
    driver.tell(Shrink(0))


def expire(driver: Driver) -> None:
    driver.ask(m.UnregisterKVCache(1))
    driver.ask(register_engine_driven(1))
    driver.ask(m.PrepareStore(key(TOKENS, worker_id=0), 1))
    driver.tick(600.1)


def clear_all(driver: Driver) -> None:
    driver.store(TOKENS)
    driver.tell(ClearAll())


def clear_by_a_client(driver: Driver) -> None:
    driver.store(TOKENS)
    driver.ask(m.Clear(False))


def clear_selectively(driver: Driver) -> None:
    driver.store(TOKENS)
    driver.tell(StartClear(Selection(model_name="m"), dry_run=False))


def delete(driver: Driver) -> None:
    driver.store(TOKENS)
    [entry] = driver.cache.page(0, 1).members
    driver.tell(DeleteObjects((entry.key,)))


def clear_while_it_is_written(driver: Driver) -> None:
    start_store(driver)
    driver.tell(ClearAll())
    driver.work()


def refuse(driver: Driver) -> None:
    start_store(driver, OTHERS)
    driver.start(m.Store(key(TOKENS, worker_id=0), 1, [[1, 2]], HANDLE))


def write_and_fail(driver: Driver) -> None:
    driver.problem = "it did not work"
    driver.store(TOKENS)


def evict_too_long_ago(driver: Driver) -> None:
    for first in range(0, 500, 100):
        driver.store(range(first, first + 16))


def clear_twice(driver: Driver) -> None:
    clear_all(driver)
    driver.store(OTHERS)
    driver.tell(ClearAll())


def leave(driver: Driver) -> None:
    driver.store(TOKENS)
    driver.ask(m.UnregisterKVCache(1))


def break_another(driver: Driver) -> None:
    driver.store(TOKENS)
    driver.problem = "no such segment"
    driver.register(2)


def use_another_layout(driver: Driver) -> None:
    driver.store(TOKENS)
    driver.register(2, [cpu_tensor([9, 2, 8, 16])])


SEQUENCES: list[tuple[MissReason, Callable[[Driver], None]]] = [
    ("never_stored", lambda driver: None),
    ("never_stored", write_and_fail),
    ("never_stored", use_another_layout),
    ("evicted", evict),
    ("evicted", evict_by_shrinking),
    ("expired", expire),
    ("cleared", clear_all),
    ("cleared", clear_by_a_client),
    ("cleared", clear_selectively),
    ("cleared", delete),
    ("cleared", clear_while_it_is_written),
    ("being_written", start_store),
    ("refused", refuse),
    ("layout_unknown", leave),
    ("layout_unknown", break_another),
    ("not_remembered", evict_too_long_ago),
    ("not_remembered", clear_twice),
]
NOT_YET = {"quarantined"}
"""Nobody finds damaged bytes so far."""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """With one slot, and a history of three."""
    monkeypatch.setattr("engine.l1.history._REMEMBERED", 3)
    made = Driver(slots=1, liveness=Liveness(registration_grace=10_000.0))
    made.register()
    return made


def missed(driver: Driver) -> dict[MissReason, int]:
    return {reason: count for reason, count in driver.report().l1.missed_lookups if count}


def test_every_reason_that_can_occur_is_here() -> None:
    assert {reason for reason, _ in SEQUENCES} | NOT_YET | {"chunk_incomplete"} == set(get_args(MissReason))


@pytest.mark.parametrize(("reason", "sequence"), SEQUENCES, ids=lambda value: getattr(value, "__name__", value))
def test_it_is_told_and_counted(driver: Driver, reason: MissReason, sequence: Callable[[Driver], None]) -> None:
    sequence(driver)
    found = driver.look(TOKENS)
    assert (found.hit_chunks, found.reason) == (0, reason)
    assert found.detail
    assert missed(driver) == {}, "a look is no lookup"
    assert driver.lookup(TOKENS) == 0
    assert missed(driver) == {reason: 1}


def test_a_chunk_that_is_not_full_is_told_and_is_no_miss(driver: Driver) -> None:
    driver.store(TOKENS)
    found = driver.look([*TOKENS, *range(50, 57)])
    assert (found.hit_chunks, found.reason) == (1, "chunk_incomplete")
    assert "7 of 16 tokens" in found.detail
    assert driver.lookup([*TOKENS, *range(50, 57)]) == 1
    assert missed(driver) == {}


def test_every_reason_that_is_counted_is_reported_from_the_start(driver: Driver) -> None:
    counted = [reason for reason, count in driver.report().l1.missed_lookups if count == 0]
    assert set(counted) == set(get_args(MissReason)) - {"chunk_incomplete"}


def test_a_lookup_that_finds_all_it_asked_for_is_no_miss(driver: Driver) -> None:
    driver.store(TOKENS)
    assert driver.lookup(TOKENS) == 1
    assert driver.lookup([]) == 0
    assert driver.lookup(TOKENS[:15]) == 0
    assert missed(driver) == {}


def test_one_that_finds_less_counts_the_reason_of_its_first_gap_and_once() -> None:
    """Chunk 0 is there, chunk 1 was deleted, chunk 2 was never stored."""
    driver = Driver(slots=5)
    driver.register()
    driver.store(range(32))
    second = hash_tokens(range(32), 16)[1]
    [found] = [entry.key for entry in driver.cache.page(0, 5).members if entry.key.endswith(second)]
    driver.tell(DeleteObjects((found,)))
    assert driver.look(range(48)).hit_chunks == 1
    assert driver.lookup(range(48)) == 1
    assert missed(driver) == {"cleared": 1}


def test_a_refused_lookup_counts_no_reason(driver: Driver) -> None:
    driver.lookup(TOKENS, num_kv_readers=-1)
    driver.lookup(TOKENS, cache_salt="a@b")
    assert missed(driver) == {}


def test_what_is_stored_again_after_a_clear_and_evicted_was_evicted(driver: Driver) -> None:
    clear_all(driver)
    evict(driver)
    assert driver.look(TOKENS).reason == "evicted"
    driver.tell(ClearAll())
    assert driver.look(TOKENS).reason == "evicted"
    assert driver.look(OTHERS).reason == "cleared"


def test_that_it_is_written_again_is_told_until_that_fails(driver: Driver) -> None:
    evict(driver)
    start_store(driver)
    assert driver.look(TOKENS).reason == "being_written"
    driver.problem = "it did not work"
    driver.work()
    assert driver.look(TOKENS).reason == "evicted"


def test_a_late_commit_does_not_change_that_it_expired(driver: Driver) -> None:
    expire(driver)
    assert driver.ask(m.CommitStore(key(TOKENS, worker_id=0), 1, b"")) is False
    assert driver.look(TOKENS).reason == "expired"
    assert driver.cache.used == 0


def test_of_several_shards_the_first_one_that_is_missing_gives_the_reason() -> None:
    driver = Driver(slots=3)
    for shard in range(2):
        driver.register(shard, world_size=2)
        driver.store(TOKENS, shard, worker_id=shard, world_size=2)
    fingerprint = driver.cache.page(0, 1).members[0].namespace.fingerprint
    second = namespace("m", 2, 1, fingerprint, "").prefix + hash_tokens(TOKENS, 16)[0]
    assert driver.look(TOKENS, world_size=2).hit_chunks == 1
    driver.tell(DeleteObjects((second,)))
    found = driver.look(TOKENS)
    assert (found.hit_chunks, found.reason) == (0, "cleared")


def test_of_nothing_that_was_stored_it_is_ever_said_that_it_never_was(driver: Driver) -> None:
    """Stored, evicted and cleared in turns, far more than is remembered."""
    prompts = [range(first, first + 16) for first in range(0, 6000, 100)]
    for number, prompt in enumerate(prompts):
        driver.store(prompt)
        if number % 7 == 0:
            driver.tell(ClearAll())
    assert driver.cache.used == SLOT
    said = [driver.look(prompt).reason for prompt in prompts]
    assert set(said) == {"evicted", "cleared", "not_remembered", None}
    assert driver.look(range(7000, 7016)).reason == "never_stored"
