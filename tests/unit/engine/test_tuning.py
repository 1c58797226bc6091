"""L1 is made smaller, larger, and ranked by another policy while requests go on."""

from __future__ import annotations

from typing import Any

import pytest

from engine.answers import JobReport
from engine.commands import (
    AwaitJob,
    ChangePolicy,
    ClearAll,
    Grow,
    ListJobs,
    Selection,
    Shrink,
    StartClear,
    StopShrinking,
)
from engine.discovery import policy_maker, policy_names
from engine.events import Discard, Discarded, TransfersEnded
from engine.wire import messages as m
from tests.unit.engine.driver import SLOT, Driver
from tests.unit.engine.support import HANDLE, key, register_engine_driven
from tests.unit.engine.test_operators import DONE, chunk, found, last_copy, store

SLOTS = 6


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """With chunks 0 to 5, each in the slot of its number; jobs look at two objects at a time."""
    monkeypatch.setattr("engine.tuning._PART", 2)
    made = Driver(SLOTS)
    made.register()
    store(made, *range(SLOTS))
    assert order_of(made) == [*range(SLOTS)]
    return made


def discards(driver: Driver) -> list[Discard]:
    return [task for task in [*driver.done, *driver.pending] if isinstance(task, Discard)]


def job_of(driver: Driver) -> JobReport:
    """The newest job."""
    return driver.tell(ListJobs())[0]


def capacity(driver: Driver) -> int:
    """In slots, as it is reported."""
    return driver.report().l1.memory_total_bytes // SLOT


class TestShrink:
    def test_the_memory_is_given_back_once_all_behind_it_was_evicted(self, driver: Driver) -> None:
        job = driver.tell(Shrink(2 * SLOT))
        assert (job.kind, job.state, job.done, job.total) == ("shrink", "running", 2 * SLOT, SLOTS * SLOT)
        assert capacity(driver) == 2
        driver.run_jobs()
        assert discards(driver) == [Discard(2 * SLOT, SLOTS * SLOT)]
        assert job_of(driver) == JobReport(1, "shrink", "done", 6 * SLOT, 6 * SLOT, 4, 4 * SLOT, False, 0.0)
        assert found(driver, range(SLOTS)) == [0, 1]
        assert (driver.report().l1.evicted_objects, driver.cache.used) == (4, 2 * SLOT)
        for _ in range(3):
            driver.tick(1.0)
        assert len(discards(driver)) == 1

    def test_requests_have_their_turn_meanwhile_and_put_nothing_behind_it(self, driver: Driver) -> None:
        driver.tell(Shrink(2 * SLOT))
        assert found(driver, range(SLOTS)) == [0, 1, 2, 3, 4, 5]
        store(driver, 10)
        assert last_copy(driver).pieces[0].offset < 2 * SLOT
        driver.go_on()
        store(driver, 11)
        assert last_copy(driver).pieces[0].offset < 2 * SLOT
        driver.run_jobs()
        assert found(driver, range(12)) == [10, 11]
        assert job_of(driver).state == "done"

    def test_what_is_in_use_there_ends_with_its_last_user_and_the_job_after_it(self, driver: Driver) -> None:
        assert driver.lookup(chunk(5), request_id="reader") == 1
        driver.working = False
        reading = driver.start(m.Retrieve(key(chunk(4), worker_id=0), 1, [[1, 2]], HANDLE, 0))
        driver.tell(Shrink(2 * SLOT))
        driver.run_jobs()
        assert found(driver, range(SLOTS)) == [0, 1]
        driver.tick(1.0)
        assert (discards(driver), job_of(driver).state, driver.cache.used) == ([], "running", 4 * SLOT)
        driver.working = True
        driver.work()
        assert driver.replies[reading] == DONE
        driver.tick(1.0)
        assert (discards(driver), job_of(driver).state) == ([], "running")
        assert driver.retrieve(chunk(5), request_id="reader") == DONE
        assert last_copy(driver).pieces[0].offset == 5 * SLOT
        driver.tick(1.0)
        assert discards(driver) == [Discard(2 * SLOT, SLOTS * SLOT)]
        assert (job_of(driver).state, driver.cache.used) == ("done", 2 * SLOT)

    def test_a_store_that_is_under_way_behind_it_does_not_appear(self, driver: Driver) -> None:
        driver.tell(ClearAll())
        driver.ask(register_engine_driven(2, model_name="n"))
        lent = key([*chunk(0), *chunk(1), *chunk(2)], worker_id=0, model_name="n")
        assert len(driver.ask(m.PrepareStore(lent, 2))["context"]["slots"]) == 3
        driver.tell(Shrink(SLOT))
        driver.run_jobs()
        assert job_of(driver).state == "running"
        assert driver.ask(m.CommitStore(lent, 2, b"")) is False, "not all of it was published"
        driver.tick(1.0)
        assert job_of(driver).state == "done"
        assert driver.lookup([*chunk(0), *chunk(1)], model_name="n") == 1
        assert driver.report().l1.evicted_objects == 0

    def test_what_was_doomed_before_and_is_in_use_holds_it_up(self, driver: Driver) -> None:
        driver.lookup(chunk(5), request_id="reader")
        driver.tell(ClearAll())
        driver.tell(Shrink(2 * SLOT))
        driver.tick(1.0)
        assert discards(driver) == []
        driver.end("reader")
        driver.tick(1.0)
        assert job_of(driver).state == "done"

    def test_a_clear_meanwhile_hastens_it(self, driver: Driver) -> None:
        driver.tell(Shrink(2 * SLOT))
        driver.tell(ClearAll())
        driver.run_jobs()
        job = job_of(driver)
        assert (job.state, job.objects, discards(driver)) == ("done", 0, [Discard(2 * SLOT, SLOTS * SLOT)])

    def test_who_waits_for_it_is_answered_when_the_memory_was_given_back(self, driver: Driver) -> None:
        driver.working = False
        job = driver.tell(Shrink(2 * SLOT))
        ticket = driver.order(AwaitJob(job.id))
        driver.run_jobs()
        driver.tick(5.0)
        assert ticket not in driver.answers
        driver.work()
        assert driver.answers[ticket].state == "done"
        assert driver.answers[ticket].age == 5.0

    def test_to_nothing_is_possible_and_back(self, driver: Driver) -> None:
        driver.tell(Shrink(0))
        driver.run_jobs()
        assert discards(driver) == [Discard(0, SLOTS * SLOT)]
        assert driver.store(chunk(1)) == DONE
        assert found(driver, [1]) == []
        driver.tell(Grow(SLOTS * SLOT))
        store(driver, *range(SLOTS))
        assert found(driver, range(SLOTS)) == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize("policy", policy_names())
    def test_requests_go_on_while_it_is_made_smaller_than_everything(
        self, monkeypatch: pytest.MonkeyPatch, policy: str
    ) -> None:
        """What is leased is used, read and let go in an L1 of nothing."""
        monkeypatch.setattr("engine.tuning._PART", 1)
        driver = Driver(SLOTS, make_policy=policy_maker(policy))
        driver.register()
        store(driver, *range(SLOTS))
        driver.lookup(chunk(0), request_id="reader")
        driver.tell(Shrink(0))
        assert found(driver, [4, 5]) == [4, 5]
        assert driver.store(chunk(7)) == DONE
        driver.run_jobs()
        assert driver.retrieve(chunk(0), request_id="reader") == DONE
        driver.tick(1.0)
        assert (job_of(driver).state, driver.cache.used, found(driver, range(SLOTS))) == ("done", 0, [])
        driver.tell(Grow(SLOTS * SLOT))
        store(driver, *range(SLOTS))
        assert found(driver, range(SLOTS)) == [*range(SLOTS)]

    def test_memory_that_cannot_be_given_back_is_told_and_the_job_ends(self, driver: Driver) -> None:
        driver.problem = "no such call"
        driver.tell(Shrink(2 * SLOT))
        driver.run_jobs()
        assert job_of(driver).state == "done"
        assert driver.warnings == ["L1's memory could not be given back: no such call"]
        assert capacity(driver) == 2


class TestWithoutATransferThread:
    def test_one_that_dies_while_it_gives_memory_back_ends_the_job_with_a_warning(self, driver: Driver) -> None:
        driver.working = False
        job = driver.tell(Shrink(2 * SLOT))
        driver.run_jobs()
        waiting = [driver.order(AwaitJob(job.id)), driver.order(StopShrinking())]
        driver.handle(TransfersEnded(0.0, "it fell over"))
        assert driver.answers[waiting[0]].state == "done"
        assert driver.answers[waiting[1]] == 2 * SLOT
        assert "L1's memory could not be given back: it fell over" in driver.warnings

    def test_one_that_died_before_gives_nothing_back_and_the_job_ends_all_the_same(self, driver: Driver) -> None:
        driver.tell(Shrink(2 * SLOT))
        driver.handle(TransfersEnded(0.0, "it fell over"))
        driver.run_jobs()
        assert (job_of(driver).state, discards(driver), capacity(driver)) == ("done", [], 2)
        assert driver.tell(StopShrinking()) == 2 * SLOT

    def test_one_that_dies_while_nothing_is_given_back_tells_nothing_of_memory(self, driver: Driver) -> None:
        driver.handle(TransfersEnded(0.0, "it fell over"))
        assert driver.warnings == []
        assert driver.tell(ListJobs()) == ()


class TestStopShrinking:
    def test_where_none_runs_it_tells_the_capacity(self, driver: Driver) -> None:
        assert driver.tell(StopShrinking()) == SLOTS * SLOT
        assert driver.tell(ListJobs()) == ()

    def test_before_memory_is_given_back_it_is_taken_back_with_what_is_still_there(self, driver: Driver) -> None:
        driver.lookup(chunk(5), request_id="reader")
        job = driver.tell(Shrink(SLOT))
        waiting = driver.order(AwaitJob(job.id))
        driver.go_on()
        assert driver.tell(StopShrinking()) == SLOTS * SLOT
        assert driver.answers[waiting].state == "done"
        assert driver.answers[waiting].objects == 3
        driver.run_jobs()
        driver.tick(1.0)
        assert discards(driver) == []
        assert found(driver, range(SLOTS)) == [0, 4, 5]
        store(driver, 7, 8, 9)
        assert found(driver, range(10)) == [0, 4, 5, 7, 8, 9]

    def test_while_it_waits_for_a_user_what_that_one_has_does_not_come_back(self, driver: Driver) -> None:
        driver.lookup(chunk(5), request_id="reader")
        driver.tell(Shrink(2 * SLOT))
        driver.run_jobs()
        assert driver.tell(StopShrinking()) == SLOTS * SLOT
        driver.end("reader")
        assert (found(driver, range(SLOTS)), driver.cache.used) == ([0, 1], 2 * SLOT)
        store(driver, 2, 3, 4, 5)
        assert found(driver, range(SLOTS)) == [0, 1, 2, 3, 4, 5]

    def test_while_memory_is_given_back_it_waits_until_that_is_done(self, driver: Driver) -> None:
        driver.working = False
        driver.tell(Shrink(2 * SLOT))
        driver.run_jobs()
        tickets = [driver.order(StopShrinking()) for _ in range(2)]
        driver.tick(1.0)
        assert not driver.answers.keys() & set(tickets)
        assert job_of(driver).state == "running"
        driver.work()
        assert [driver.answers[ticket] for ticket in tickets] == [2 * SLOT] * 2
        assert (job_of(driver).state, len(discards(driver))) == ("done", 1)

    def test_after_that_there_is_nothing_to_stop(self, driver: Driver) -> None:
        driver.tell(Shrink(2 * SLOT))
        driver.run_jobs()
        assert driver.tell(StopShrinking()) == 2 * SLOT
        assert capacity(driver) == 2

    def test_a_shrink_after_one_that_was_stopped_discards_its_own_tail_only(self, driver: Driver) -> None:
        driver.tell(Shrink(SLOT))
        driver.tell(StopShrinking())
        driver.tell(Shrink(3 * SLOT))
        driver.run_jobs()
        assert discards(driver) == [Discard(3 * SLOT, SLOTS * SLOT)]


class TestGrow:
    def test_there_is_more_room_at_once(self, driver: Driver) -> None:
        assert driver.tell(Grow((SLOTS + 2) * SLOT)) is None
        store(driver, 6, 7)
        assert found(driver, range(8)) == list(range(8))
        assert capacity(driver) == SLOTS + 2

    @pytest.mark.parametrize("slots", [4, SLOTS, SLOTS + 2])
    def test_after_a_shrink_there_is_room_for_what_fits_and_no_more(self, driver: Driver, slots: int) -> None:
        driver.tell(Shrink(2 * SLOT))
        driver.run_jobs()
        driver.tell(Grow(slots * SLOT))
        store(driver, *range(2, slots))
        assert found(driver, range(slots)) == list(range(slots))
        store(driver, 99)
        assert len(found(driver, range(100))) == slots

    def test_what_is_no_whole_slot_is_left_out(self, driver: Driver) -> None:
        driver.tell(Grow((SLOTS + 1) * SLOT - 1))
        assert capacity(driver) == SLOTS

    def test_and_a_shrink_after_that_discards_exactly_what_was_grown(self, driver: Driver) -> None:
        driver.tell(Grow(9 * SLOT))
        driver.tell(Shrink(SLOTS * SLOT))
        driver.run_jobs()
        assert discards(driver) == [Discard(SLOTS * SLOT, 9 * SLOT)]
        assert found(driver, range(SLOTS)) == list(range(SLOTS))


def order_of(driver: Driver) -> list[int]:
    """The slots' numbers, in the order in which what is there would be evicted."""
    return [entry.offset // SLOT for entry in driver.ranked]


@pytest.mark.parametrize("new", policy_names())
class TestChangeOfPolicy:
    def change(self, driver: Driver, name: str) -> JobReport:
        return driver.tell(ChangePolicy(name, policy_maker(name)))

    def test_it_keeps_everything_and_its_order_and_is_reported(self, driver: Driver, new: str) -> None:
        assert found(driver, [3, 1]) == [3, 1]
        job = self.change(driver, new)
        assert (job.kind, job.state, job.done, job.total) == ("change_policy", "running", 2, SLOTS)
        assert driver.report().eviction_policy == new
        for _ in range(3):
            assert order_of(driver) == [0, 2, 4, 5, 3, 1]
            driver.go_on()
        assert not driver.go_on()
        assert job_of(driver).state == "done"
        assert order_of(driver) == [0, 2, 4, 5, 3, 1]
        assert found(driver, range(SLOTS)) == [0, 1, 2, 3, 4, 5]

    def test_what_is_leased_meanwhile_stays_and_comes_last(self, driver: Driver, new: str) -> None:
        driver.lookup(chunk(0), request_id="reader")
        self.change(driver, new)
        driver.lookup(chunk(1), request_id="other")
        driver.go_on()
        driver.end("other")
        driver.run_jobs()
        assert order_of(driver) == [2, 3, 4, 5, 1]
        driver.end("reader")
        # ARC and hit density have not seen that 0 was used.
        assert order_of(driver) == [2, 3, 4, 5, *([0, 1] if new in ("arc", "hit_density") else [1, 0])]

    def test_a_second_one_on_top_ends_both(self, driver: Driver, new: str) -> None:
        jobs = [self.change(driver, new), self.change(driver, "lru")]
        driver.run_jobs()
        ended: list[Any] = [driver.tell(AwaitJob(job.id)) for job in jobs]
        assert [(job.state, job.done) for job in ended] == [("done", SLOTS)] * 2
        assert order_of(driver) == [0, 1, 2, 3, 4, 5]
        assert driver.report().eviction_policy == "lru"

    def test_the_new_one_rules_when_it_has_ended(self, driver: Driver, new: str) -> None:
        self.change(driver, new)
        driver.run_jobs()
        assert found(driver, [0]) == [0]
        store(driver, 9)
        assert found(driver, range(10)) == ([1, 2, 3, 4, 5, 9] if new in ("fifo", "s3fifo") else [0, 2, 3, 4, 5, 9])

    def test_a_clear_and_a_shrink_go_on_beside_it(self, driver: Driver, new: str) -> None:
        jobs = [self.change(driver, new), driver.tell(Shrink(4 * SLOT))]
        jobs.append(driver.tell(StartClear(Selection(model_name="other"), dry_run=False)))
        driver.run_jobs()
        assert {job.state for job in driver.tell(ListJobs())} == {"done"}
        assert order_of(driver) == [0, 1, 2, 3]

    def test_where_nothing_is_it_ends_at_once(self, driver: Driver, new: str) -> None:
        driver.tell(ClearAll())
        assert self.change(driver, new).state == "done"


def test_a_discard_that_nobody_asked_for_is_no_matter(driver: Driver) -> None:
    assert driver.handle(Discarded(0.0, None)) == []
