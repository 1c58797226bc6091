"""What operators see of the cache and do to it, while requests go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from engine import AmbiguousError
from engine.answers import Deleted, Held, JobReport, ObjectReport, SessionReport
from engine.commands import (
    AwaitJob,
    ClearAll,
    DeleteObjects,
    ListJobs,
    ListObjects,
    ListSessions,
    ListWorkers,
    Look,
    Selection,
    StartClear,
)
from engine.events import Copy
from engine.status import Cleared
from engine.wire import messages as m
from tests.unit.engine.driver import SLOT, TENSORS, Driver
from tests.unit.engine.support import HANDLE, cpu_tensor, key, packed, register_engine_driven

DONE, FAILED = [b"", True], [b"", False]
ALL = 100 * SLOT
"""How far a walk over L1 goes."""
MINE = Selection(model_name="m")
"""Agrees with all that the tests store, and is no clear of everything."""


def chunk(number: int) -> range:
    """The tokens of a prompt of one chunk."""
    return range(100 * number, 100 * number + 16)


def store(driver: Driver, *numbers: int, **more: Any) -> None:
    for number in numbers:
        assert driver.store(chunk(number), **more) == DONE


def found(driver: Driver, numbers: Sequence[int], **more: Any) -> list[int]:
    """Those of the chunks that are there; leaves no leases."""
    there = [number for number in numbers if driver.lookup(chunk(number), request_id="found", **more)]
    driver.end("found")
    return there


def last_copy(driver: Driver) -> Copy:
    copy = driver.done[-1]
    assert isinstance(copy, Copy)
    return copy


def clear(driver: Driver, selection: Selection = MINE, *, dry_run: bool = False) -> JobReport:
    """Starts a clear; its report after the first part."""
    return driver.tell(StartClear(selection, dry_run))


def end_of(driver: Driver, job: JobReport) -> JobReport:
    """Runs jobs; the last report of this one."""
    driver.run_jobs()
    report = driver.tell(AwaitJob(job.id))
    assert report is not None
    return report


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Whose jobs and pages look at two objects at a time; L1 has 100 slots."""
    monkeypatch.setattr("engine.operators._PART", 2)
    made = Driver()
    made.register()
    return made


class TestSelectiveClear:
    @pytest.mark.parametrize(
        ("selection", "left"),
        [
            (Selection(model_name="m"), "n ns"),
            (Selection(model_name="n"), "m ms new"),
            (Selection(model_name="other"), "m ms n ns new"),
            (Selection(cache_salt=""), "ms ns"),
            (Selection(cache_salt="s"), "m n new"),
            (Selection(older_than=10.0), "new"),
            (Selection(older_than=30.0), "m ms n ns new"),
            (Selection(older_than=0.0), "new"),
            (Selection(model_name="m", cache_salt="s"), "m n ns new"),
            (Selection(model_name="m", older_than=10.0), "n ns new"),
            (Selection(model_name="m", cache_salt="", older_than=10.0), "ms n ns new"),
        ],
        ids=str,
    )
    def test_only_what_agrees_with_everything_given_is_cleared(
        self, driver: Driver, selection: Selection, left: str
    ) -> None:
        driver.register(2, model_name="n")
        kinds: dict[str, dict[str, Any]] = {
            "m": {},
            "ms": {"cache_salt": "s"},
            "n": {"model_name": "n"},
            "ns": {"model_name": "n", "cache_salt": "s"},
        }
        for kind in kinds.values():
            store(driver, 1, instance_id=2 if "model_name" in kind else 1, **kind)
        driver.tick(30.0)
        store(driver, 2)
        report = end_of(driver, clear(driver, selection))
        there = [name for name, kind in kinds.items() if found(driver, [1], **kind)]
        there += ["new"] if found(driver, [2]) else []
        assert there == left.split()
        assert (report.objects, report.bytes) == (5 - len(there), (5 - len(there)) * SLOT)
        assert driver.report().l1.cleared_objects == report.objects
        assert driver.cache.used == len(there) * SLOT

    def test_it_is_done_in_parts_with_requests_between(self, driver: Driver) -> None:
        store(driver, *range(5))
        job = clear(driver)
        assert (job.state, job.done, job.total, job.objects) == ("running", 2 * SLOT, ALL, 2)
        assert found(driver, range(5)) == [2, 3, 4]
        assert driver.go_on()
        assert found(driver, range(5)) == [4]
        assert driver.go_on()
        assert not driver.go_on()
        assert driver.tell(ListJobs()) == (JobReport(1, "clear", "done", ALL, ALL, 5, 5 * SLOT, False, 0.0),)

    def test_what_is_stored_after_it_was_asked_for_is_spared(self, driver: Driver) -> None:
        """In a place that is free again, in one behind the last, and under a key that was cleared."""
        store(driver, *range(4))
        job = clear(driver)
        store(driver, 7, 8, 0, 9)
        report = end_of(driver, job)
        assert found(driver, range(10)) == [0, 7, 8, 9]
        assert report.objects == 4

    def test_what_is_evicted_before_it_gets_there_is_not_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("engine.operators._PART", 2)
        driver = Driver(slots=4)
        driver.register()
        store(driver, 0, 1, cache_salt="s")
        store(driver, 2, 3)
        assert found(driver, [0, 1], cache_salt="s") == [0, 1]
        job = clear(driver, Selection(cache_salt=""))
        store(driver, 9)
        report = end_of(driver, job)
        assert (report.objects, driver.report().l1.evicted_objects) == (1, 1)
        assert found(driver, range(10)) == [9]

    @pytest.mark.parametrize("selection", [Selection(), MINE, Selection(older_than=-1.0)])
    def test_a_dry_run_counts_and_changes_nothing(self, driver: Driver, selection: Selection) -> None:
        store(driver, *range(5))
        driver.lookup(chunk(0), request_id="reader")
        driver.working = False
        driver.start(m.Store(key(chunk(7), worker_id=0), 1, [[1, 2]], HANDLE))
        before, order = driver.report(), driver.ranked
        report = end_of(driver, clear(driver, selection, dry_run=True))
        assert (report.objects, report.bytes, report.dry_run, report.state) == (5, 5 * SLOT, True, "done")
        assert driver.report() == before
        assert driver.ranked == order
        driver.work()
        assert found(driver, range(8)) == [0, 1, 2, 3, 4, 7]

    def test_a_leased_object_is_still_retrieved_and_its_slot_ends_with_its_last_user(self, driver: Driver) -> None:
        store(driver, 1)
        [written] = last_copy(driver).pieces
        for reader in ("one", "other"):
            assert driver.lookup(chunk(1), request_id=reader) == 1
        end_of(driver, clear(driver))
        store(driver, 2, 1)
        assert last_copy(driver).pieces[0].offset != written.offset
        for reader, used in (("one", 3), ("other", 2)):
            assert driver.retrieve(chunk(1), request_id=reader) == DONE
            assert last_copy(driver).pieces == (written,)
            assert driver.cache.used == used * SLOT
        assert found(driver, [1, 2]) == [1, 2]

    def test_one_that_is_being_read_is_read_to_its_end(self, driver: Driver) -> None:
        store(driver, 1)
        driver.working = False
        uid = driver.start(m.Retrieve(key(chunk(1), worker_id=0), 1, [[1, 2]], HANDLE, 0))
        end_of(driver, clear(driver))
        assert (driver.cache.used, found(driver, [1])) == (SLOT, [])
        driver.work()
        assert driver.replies[uid] == DONE
        assert driver.cache.used == 0

    @pytest.mark.parametrize("problem", [None, "it did not work"])
    def test_a_store_that_is_under_way_does_not_reappear_and_does_not_count(
        self, driver: Driver, problem: str | None
    ) -> None:
        driver.working = False
        uid = driver.start(m.Store(key(chunk(1), worker_id=0), 1, [[1, 2]], HANDLE))
        report = end_of(driver, clear(driver))
        assert (report.objects, report.bytes, driver.cache.used) == (0, 0, SLOT)
        driver.problem = problem
        driver.work()
        assert driver.replies[uid] == (FAILED if problem else DONE)
        assert (driver.cache.used, found(driver, [1])) == (0, [])
        assert driver.report().l1.cleared_objects == 0

    def test_a_slot_that_is_lent_for_writing_comes_back_unpublished(self, driver: Driver) -> None:
        driver.ask(register_engine_driven(2, model_name="n"))
        lent = key(chunk(1), worker_id=0, model_name="n")
        driver.ask(m.PrepareStore(lent, 2))
        end_of(driver, clear(driver, Selection(model_name="n")))
        assert driver.cache.used == SLOT
        assert driver.ask(m.CommitStore(lent, 2, b"")) is False
        assert (driver.cache.used, found(driver, [1], model_name="n")) == (0, [])

    def test_a_clear_of_everything_in_its_middle_ends_it_and_spares_what_comes_then(self, driver: Driver) -> None:
        store(driver, *range(6))
        job = clear(driver)
        assert driver.tell(ClearAll()) == Cleared(4, 4 * SLOT)
        store(driver, 8, 9)
        report = end_of(driver, job)
        assert (report.state, report.done, report.total, report.objects) == ("done", ALL, ALL, 2)
        assert found(driver, range(10)) == [8, 9]

    def test_two_at_once_do_not_count_the_same_object(self, driver: Driver) -> None:
        store(driver, *range(6))
        jobs = [clear(driver), clear(driver, Selection(cache_salt=""))]
        reports = [end_of(driver, job) for job in jobs]
        assert sum(report.objects for report in reports) == 6
        assert driver.report().l1.cleared_objects == 6

    def test_where_nothing_is_it_ends_at_once(self, driver: Driver) -> None:
        report = clear(driver)
        assert (report.state, report.done, report.total, report.objects) == ("done", ALL, ALL, 0)
        assert not driver.go_on()


class TestClearOfEverything:
    def test_it_is_done_at_once(self, driver: Driver) -> None:
        store(driver, *range(5))
        assert clear(driver, Selection()) == JobReport(1, "clear", "done", 0, 0, 5, 5 * SLOT, False, 0.0)
        assert found(driver, range(5)) == []
        assert not driver.go_on()

    def test_as_a_dry_run_it_counts_at_once(self, driver: Driver) -> None:
        store(driver, *range(5))
        report = clear(driver, Selection(), dry_run=True)
        assert (report.objects, report.state, report.dry_run) == (5, "done", True)
        assert found(driver, range(5)) == [0, 1, 2, 3, 4]


class TestJobs:
    def test_who_waits_for_one_is_answered_at_its_end(self, driver: Driver) -> None:
        store(driver, *range(5))
        job = clear(driver)
        tickets = [driver.order(AwaitJob(job.id)) for _ in range(2)]
        driver.go_on()
        assert not driver.answers.keys() & set(tickets)
        driver.now = 3.0
        driver.go_on()
        last = JobReport(job.id, "clear", "done", ALL, ALL, 5, 5 * SLOT, False, 3.0)
        assert [driver.answers[ticket] for ticket in tickets] == [last, last]
        driver.tick(1.0)

    def test_who_waits_for_one_that_has_ended_is_answered_at_once(self, driver: Driver) -> None:
        job = clear(driver, Selection())
        assert driver.tell(AwaitJob(job.id)) == job

    @pytest.mark.parametrize("job_id", [0, 1, -1, 99])
    def test_who_waits_for_an_unknown_one_is_answered_at_once(self, driver: Driver, job_id: int) -> None:
        assert driver.tell(AwaitJob(job_id)) is None

    def test_they_are_listed_the_newest_first_and_a_hundred_of_those_that_ended(self, driver: Driver) -> None:
        store(driver, *range(3))
        running = clear(driver, dry_run=True)
        for _ in range(120):
            clear(driver, Selection(), dry_run=True)
            driver.wants_to_continue = False
        listed = driver.tell(ListJobs())
        assert [job.id for job in listed] == list(range(121, 21, -1))
        assert running.id not in [job.id for job in listed], "it has ended first"

    def test_time_alone_makes_them_go_on(self, driver: Driver) -> None:
        store(driver, *range(5))
        job = clear(driver)
        driver.wants_to_continue = False
        for _ in range(2):
            driver.tick(1.0)
        assert driver.tell(ListJobs())[0].state == "done"
        assert job.state == "running"


class TestObjects:
    def walk(self, driver: Driver, limit: int, selection: Selection = MINE) -> list[tuple[int, ObjectReport]]:
        """All pages: (number of the page, object)."""
        seat: int | None = 0
        met: list[tuple[int, ObjectReport]] = []
        for number in range(100):
            assert seat is not None
            page = driver.tell(ListObjects(seat, limit, selection))
            assert len(page.objects) <= limit
            met += [(number, each) for each in page.objects]
            seat = page.next_place
            if seat is None:
                return met
        raise AssertionError("the walk does not end")

    def test_each_is_told_with_what_it_is(self, driver: Driver) -> None:
        driver.now = 5.0
        store(driver, 1, cache_salt="s")
        driver.lookup(chunk(1), cache_salt="s", num_kv_readers=3)
        driver.now = 7.0
        driver.working = False
        driver.start(m.Store(key(chunk(2), worker_id=0), 1, [[1, 2]], HANDLE))
        driver.now = 8.0
        page = driver.tell(ListObjects(0, 10, Selection()))
        one, other = page.objects
        entry = driver.cache.entry(one.key)
        assert entry is not None
        fingerprint = entry.namespace.fingerprint
        assert one == ObjectReport(entry.key, "m", 1, 0, fingerprint, "s", SLOT, True, 3, 3.0)
        assert (other.is_ready, other.leases, other.age, other.cache_salt) == (False, 0, 1.0, "")
        assert page.next_place is None

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    def test_a_walk_meets_all_in_pages_of_the_limit(self, driver: Driver, limit: int) -> None:
        store(driver, *range(7))
        met = [each.key for _, each in self.walk(driver, limit)]
        assert len(met) == len(set(met)) == 7

    def test_a_page_looks_at_so_many_seats_however_few_agree(self, driver: Driver) -> None:
        store(driver, *range(6))
        store(driver, 6, cache_salt="s")
        assert driver.tell(ListObjects(0, 10, Selection(cache_salt="s"))).objects == ()
        [(number, last)] = self.walk(driver, 10, Selection(cache_salt="s"))
        assert (number, last.cache_salt) == (3, "s")

    def test_whoever_stays_is_met_once_whatever_comes_and_goes(self, driver: Driver) -> None:
        store(driver, *range(6))
        staying = {entry.key for entry in driver.cache.page(0, 6).members}
        first = driver.tell(ListObjects(0, 2, MINE))
        gone = first.objects[0].key
        driver.tell(DeleteObjects((gone,)))
        store(driver, *range(10, 14))
        met = [each.key for each in first.objects]
        seat = first.next_place
        while seat is not None:
            page = driver.tell(ListObjects(seat, 2, MINE))
            met += [each.key for each in page.objects]
            seat = page.next_place
        assert len(met) == len(set(met))
        assert staying - {gone} <= set(met)

    def test_where_nothing_is_there_is_one_empty_page(self, driver: Driver) -> None:
        assert self.walk(driver, 10) == []
        assert driver.tell(ListObjects(50, 10, MINE)).next_place is None


class TestDelete:
    def test_the_named_ones_go_and_the_unknown_ones_are_counted(self, driver: Driver) -> None:
        store(driver, 1, 2, 3)
        keys = [entry.key for entry in driver.cache.page(0, 3).members]
        command = DeleteObjects((keys[0], bytes(48), keys[2], keys[0]))
        assert driver.tell(command) == Deleted(Cleared(2, 2 * SLOT), 2)
        assert found(driver, [1, 2, 3]) == [2]
        assert driver.report().l1.cleared_objects == 2

    def test_one_that_is_in_use_ends_with_its_last_user(self, driver: Driver) -> None:
        store(driver, 1)
        driver.lookup(chunk(1))
        [entry] = driver.cache.page(0, 1).members
        driver.tell(DeleteObjects((entry.key,)))
        assert found(driver, [1]) == []
        assert driver.retrieve(chunk(1)) == DONE
        assert driver.cache.used == 0

    def test_one_that_is_being_written_does_not_reappear(self, driver: Driver) -> None:
        driver.working = False
        driver.start(m.Store(key(chunk(1), worker_id=0), 1, [[1, 2]], HANDLE))
        [entry] = driver.cache.page(0, 1).members
        assert driver.tell(DeleteObjects((entry.key,))) == Deleted(Cleared(1, SLOT), 0)
        driver.work()
        assert (driver.cache.used, found(driver, [1])) == (0, [])


class TestLook:
    def test_it_finds_what_a_lookup_would_and_uses_nothing(self, driver: Driver) -> None:
        driver.store(range(48))
        before = driver.report()
        order = driver.ranked
        look = driver.look([*range(32), *range(900, 916)])
        assert (look.hit_chunks, look.reason) == (2, "never_stored")
        assert look.detail.startswith("chunk 2: ")
        assert driver.report() == before
        assert driver.ranked == order
        assert driver.leased == 0

    def test_it_names_what_further_tiers_would_have_to_have(self, driver: Driver) -> None:
        """What L1 has behind a gap is not asked of anybody; an incomplete chunk is nowhere."""
        driver.store([7] * 16)
        tokens = [*range(48), *range(900, 920)]
        _, second, _, last = driver.look(tokens).rest
        driver.store(range(48))
        driver.tell(DeleteObjects(second))
        look = driver.look(tokens)
        assert (look.hit_chunks, look.rest) == (1, (second, (), last))
        assert look.misses[0] == (look.reason, look.detail) == ("cleared", "chunk 1: it was cleared")
        assert [miss.reason for miss in look.misses[2:]] == ["never_stored", "chunk_incomplete"]
        assert look.misses[-1].detail.startswith("chunk 4: 4 of 16 tokens")

    def test_where_all_is_there_nothing_is_wrong(self, driver: Driver) -> None:
        driver.store(range(48))
        look = driver.look(range(48))
        assert (look.hit_chunks, look.reason, look.detail) == (3, None, "")
        assert driver.look([]).reason is None

    def test_the_salt_is_part_of_the_question(self, driver: Driver) -> None:
        store(driver, 1, cache_salt="s")
        assert driver.look(chunk(1)).hit_chunks == 0
        assert driver.look(chunk(1), cache_salt="s").hit_chunks == 1

    def test_without_a_worker_nothing_can_hit_and_it_says_so(self, driver: Driver) -> None:
        look = driver.look(chunk(1), "nobody's")
        assert (look.hit_chunks, look.reason) == (0, "layout_unknown")
        assert 'no worker of "nobody\'s" is ready' in look.detail

    def test_every_layout_of_the_model_counts(self, driver: Driver) -> None:
        store(driver, 1)
        driver.register(2, [cpu_tensor([9, 2, 8, 16])])
        assert driver.look(chunk(1)).hit_chunks == 0
        store(driver, 1, instance_id=2)
        assert driver.look(chunk(1)).hit_chunks == 1

    def test_a_model_that_runs_with_several_world_sizes_has_to_be_named_with_one(self, driver: Driver) -> None:
        store(driver, 1)
        driver.register(2, TENSORS, world_size=4)
        with pytest.raises(AmbiguousError, match=r"'m' runs with world sizes \[1, 4\]; say which with world_size"):
            driver.tell(Look("m", None, "", (), 0))
        assert driver.look(chunk(1), world_size=1).hit_chunks == 1
        assert driver.look(chunk(1), world_size=4).reason == "never_stored"
        assert driver.look(chunk(1), world_size=2).reason == "layout_unknown"
        driver.ask(m.UnregisterKVCache(1))
        assert driver.look(chunk(1)).reason == "never_stored"


class TestSessions:
    def test_each_is_told_with_what_it_holds(self, driver: Driver) -> None:
        driver.store(range(48))
        driver.now = 5.0
        assert driver.lookup(range(48), request_id="a", client=b"1", num_kv_readers=2) == 3
        driver.now = 6.0
        driver.ask(m.Lookup(key(range(900, 916), request_id="b"), packed(1)), client=b"2")
        driver.now = 7.5
        page = driver.tell(ListSessions(0, 10))
        assert page.sessions == (
            SessionReport("a", b"1", 2.5, 3, True, 3, 3 * SLOT),
            SessionReport("b", b"2", 1.5, 0, False, 0, 0),
        )
        assert page.next_place is None

    def test_what_was_used_or_given_back_is_not_held_any_more(self, driver: Driver) -> None:
        driver.store(range(48))
        driver.lookup(range(48), num_kv_readers=2)

        def held() -> tuple[int, int]:
            [session] = driver.tell(ListSessions(0, 10)).sessions
            return session.leased_objects, session.leased_bytes

        driver.retrieve(range(48), start=32)
        assert held() == (3, 3 * SLOT), "another reader may still come"
        driver.retrieve(range(48), start=32)
        assert held() == (2, 2 * SLOT)
        driver.free(range(48), end=16)
        assert held() == (1, SLOT)
        driver.connected = True
        driver.tick(300.1)
        assert held() == (0, 0)

    def test_a_walk_meets_whoever_stays_once(self, driver: Driver) -> None:
        for number in range(5):
            driver.lookup(chunk(1), request_id=str(number))
        first = driver.tell(ListSessions(0, 2))
        driver.end("0")
        driver.end("3")
        for number in (7, 8, 9):
            driver.lookup(chunk(1), request_id=str(number))
        assert first.next_place is not None
        rest = driver.tell(ListSessions(first.next_place, 10))
        met = [each.request_id for page in (first, rest) for each in page.sessions]
        assert len(met) == len(set(met))
        assert {"1", "2", "4"} <= set(met)


class TestWorkers:
    def test_they_are_listed_by_their_ids_in_pages(self, driver: Driver) -> None:
        for instance_id in (9, 4, 7):
            driver.ask(register_engine_driven(instance_id))
        first = driver.tell(ListWorkers(None, 3))
        assert ([each.instance_id for each in first.workers], first.next_instance_id) == ([1, 4, 7], 9)
        rest = driver.tell(ListWorkers(9, 3))
        assert ([each.instance_id for each in rest.workers], rest.next_instance_id) == ([9], None)
        driver.ask(m.UnregisterEngineDriven(9))
        assert driver.tell(ListWorkers(9, 3)).workers == ()

    def test_each_is_told_with_its_signs_of_life(self, driver: Driver) -> None:
        driver.tick(5.0)
        driver.ask(m.Ping(1))
        driver.problem = "no such segment"
        driver.register(2, model_name="n")
        driver.tick(2.0)
        one, other = driver.tell(ListWorkers(None, 10)).workers
        assert (one.model_name, one.state, one.problem, one.transfer_mode) == ("m", "ready", None, "lmcache_driven")
        assert (one.age, one.silent_for, one.has_pinged) == (7.0, 2.0, True)
        assert (other.model_name, other.state, other.problem) == ("n", "broken", "no such segment")
        assert (other.age, other.silent_for, other.has_pinged) == (2.0, 2.0, False)

    def test_what_is_copied_for_one_is_its_own_until_the_copy_has_ended(self, driver: Driver) -> None:
        driver.register(2)
        driver.store(range(48))
        driver.working = False
        driver.start(m.Store(key(range(100, 132), worker_id=0), 1, [[1, 2, 3, 4]], HANDLE))
        driver.start(m.Retrieve(key(range(48), worker_id=0), 2, [[1, 2, 3, 4, 5, 6]], HANDLE, 0))
        driver.start(m.Retrieve(key(range(48), 0, 16, worker_id=0), 1, [[1, 2]], HANDLE, 0))

        def held() -> list[tuple[Held, Held]]:
            return [(each.writing, each.reading) for each in driver.tell(ListWorkers(None, 10)).workers]

        nothing = Held(0, 0)
        assert held() == [(Held(2, 2 * SLOT), Held(1, SLOT)), (nothing, Held(3, 3 * SLOT))]
        driver.work()
        assert held() == [(nothing, nothing)] * 2

    def test_what_is_lent_to_one_is_its_own_until_it_comes_back(self, driver: Driver) -> None:
        driver.ask(register_engine_driven(3, model_name="n"))

        def lent(number: int) -> m.Key:
            return key(chunk(number), worker_id=0, model_name="n")

        def held() -> tuple[Held, Held]:
            [worker] = driver.tell(ListWorkers(3, 1)).workers
            return worker.writing, worker.reading

        driver.ask(m.PrepareStore(lent(1), 3))
        driver.ask(m.PrepareStore(lent(2), 3))
        assert held() == (Held(2, 2 * SLOT), Held(0, 0))
        driver.ask(m.CommitStore(lent(1), 3, b""))
        for _ in range(2):
            driver.ask(m.PrepareRetrieve(lent(1), 3))
        assert held() == (Held(1, SLOT), Held(2, 2 * SLOT)), "each retrieve has its own share"
        driver.ask(m.CommitRetrieve(lent(1), 3))
        driver.ask(m.CommitStore(lent(2), 3, b""))
        assert held() == (Held(0, 0), Held(1, SLOT))
