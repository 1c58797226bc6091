"""`L2Tier`: right bytes, one answer each, nobody waits for a storage, and a storage that failed is used again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import pytest

from engine.errors import TierError
from engine.events import Event, Found, Loaded, Save, Saved, TierCleared
from engine.l2.base import DeniedError, FullError
from engine.l2.breaker import FAILURES, LONGEST_WAIT
from engine.l2.envelope import HEADER_BYTES
from engine.l2.faults import Fault, Flipped, Raised, Truncated
from engine.l2.objects import object_name
from engine.l2.tasks import STALE_SECONDS
from engine.supervision import Supervisor
from tests.support.polling import until
from tests.unit.engine.l2.tiers import DOWN, SIZE, SPACE, Bench, benches, content, key
from tests.unit.engine.support import FakeClock

Make = Callable[..., Bench]


@pytest.fixture
def make() -> Iterator[Make]:
    with benches() as made:
        yield made


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def bench(make: Make, clock: FakeClock) -> Bench:
    made = make(clock)
    made.open()
    return made


def open_breaker(bench: Bench, *calls: str) -> None:
    """The storage fails until it is left alone."""
    bench.fail(*calls)
    for number in range(FAILURES):
        if "write" in calls:
            bench.save(number % 8)
        else:
            bench.find(number)


class TestMoving:
    def test_what_was_saved_is_found_and_loaded_into_another_slot(self, bench: Bench) -> None:
        assert bench.save(1, 2) == ["done", "done"]
        assert bench.find(1, 9, 2) == (True, False, True)
        assert bench.load(2, place=12) == "done"
        assert bench.load(1, place=13) == "done"
        assert (bench.bytes_in(12), bench.bytes_in(13)) == (content(2), content(1))

    def test_nothing_beside_the_slot_is_touched(self, bench: Bench) -> None:
        bench.save(1)
        bench.arena[:] = bytes(len(bench.arena))
        bench.load(1, place=5)
        assert bench.arena[: 5 * SIZE].count(0) == 5 * SIZE
        assert bench.arena[6 * SIZE :].count(0) == 10 * SIZE

    def test_what_is_not_there_is_absent(self, bench: Bench) -> None:
        assert bench.load(1) == "absent"
        assert not bench.tier.problem()

    def test_many_at_once_are_answered_once_each(self, bench: Bench) -> None:
        assert bench.save(*range(8)) == ["done"] * 8
        tickets = [bench.begin_load(number % 8, place=8 + number % 8) for number in range(8)]
        assert {bench.answer(ticket, Loaded).outcome for ticket in tickets} == {"done"}
        assert [bench.bytes_in(8 + number) for number in range(8)] == [content(number) for number in range(8)]

    def test_names_too_long_for_an_envelope_are_refused_and_no_fault_of_the_storage(self, bench: Bench) -> None:
        slot = replace(bench.put(1, 1), namespace=replace(SPACE, model_name="m" * 4000))
        for ticket in range(900, 900 + 2 * FAILURES):
            bench.tier.submit(Save("t", ticket, slot))
            assert bench.answer(ticket, Saved).outcome == "refused"
        assert bench.tier.problem() is None

    def test_all_of_it_is_counted(self, bench: Bench) -> None:
        bench.save(1, 2)
        bench.load(1)
        bench.load(7)
        bench.find(1, 2, 3)
        report = bench.tier.report()
        assert dict(report.saves)["done"] == 2
        assert (dict(report.loads)["done"], dict(report.loads)["absent"]) == (1, 1)
        assert (report.saved_bytes, report.loaded_bytes) == (2 * SIZE, SIZE)
        assert (report.found_objects, report.absent_objects) == (2, 1)
        timed = (report.save_seconds, report.load_seconds, report.find_seconds)
        assert [sum(each.counts) for each in timed] == [2, 1, 1]

    def test_a_report_stays_the_same_until_something_changes(self, bench: Bench) -> None:
        bench.save(1)
        until(lambda: bench.tier.report().waiting_saves == 0, "the end of the save")
        one = bench.tier.report()
        assert bench.tier.report() is one
        bench.find(1)
        assert bench.tier.report() is not one


class TestDamage:
    @pytest.mark.parametrize(
        "fault",
        [
            Flipped(0),
            Flipped(HEADER_BYTES - 1),
            Flipped(HEADER_BYTES),
            Flipped(-1, 7),
            Truncated(0),
            Truncated(HEADER_BYTES),
            Truncated(HEADER_BYTES + SIZE - 1),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("call", ["write", "read_into"])
    def test_what_is_not_what_was_saved_is_damaged(self, bench: Bench, call: str, fault: Fault) -> None:
        bench.plan = {call: fault}
        bench.save(1)
        assert bench.load(1) == "damaged"
        assert dict(bench.tier.report().loads)["damaged"] == 1
        assert bench.tier.problem() is None

    def test_the_object_of_another_key_is_damaged(self, bench: Bench) -> None:
        bench.save(1, 2)
        objects = bench.memory._objects
        objects[object_name(key(1))] = objects[object_name(key(2))]
        assert bench.load(1) == "damaged"
        assert bench.load(2) == "done"

    def test_what_is_longer_than_its_slot_is_damaged(self, bench: Bench) -> None:
        bench.save(1)
        bench.memory._objects[object_name(key(1))] += b"more"
        assert bench.load(1) == "damaged"

    def test_it_is_put_aside_as_absent_until_it_is_saved_again(self, bench: Bench) -> None:
        bench.plan = {"write": Flipped(-1)}
        bench.save(1)
        bench.plan = {}
        assert bench.find(1) == (True,)
        assert bench.load(1) == "damaged"
        assert bench.find(1) == (False,)
        bench.save(1)
        assert bench.find(1) == (True,)
        assert bench.load(1) == "done"
        assert bench.bytes_in(15) == content(1)

    def test_after_it_was_deleted_it_is_not_put_aside_any_more(self, bench: Bench) -> None:
        bench.save(1)
        bench.memory._objects[object_name(key(1))] = b"garbage"
        bench.load(1)
        assert bench.tier.delete([key(1)]).result(20) == 1
        bench.memory._objects[object_name(key(1))] = b"another server's"
        assert bench.find(1) == (True,)


class TestFailures:
    def test_what_fails_once_is_tried_again(self, bench: Bench) -> None:
        bench.save(1)
        faults = [DOWN]
        bench.faulty.plan = lambda call, names: faults.pop() if call == "read_into" and faults else None
        assert bench.load(1) == "done"
        assert bench.tier.report().retries == 1

    def test_what_keeps_failing_is_answered(self, bench: Bench) -> None:
        bench.fail("read_into", "write", "contains")
        assert bench.load(1) == "unavailable"
        assert bench.save(1) == ["unavailable"]
        assert bench.find(1, 2) == (False, False)

    @pytest.mark.parametrize(
        ("error", "outcome"),
        [(FullError("no room"), "full"), (DeniedError("not yours"), "refused"), (ValueError("a bug"), "refused")],
    )
    def test_what_another_try_would_not_change_is_not_tried_again(
        self, bench: Bench, error: Exception, outcome: str
    ) -> None:
        bench.plan = {"write": Raised(error)}
        assert bench.save(1) == [outcome]
        assert bench.tier.report().retries == 0

    def test_a_full_storage_is_no_failing_one(self, bench: Bench) -> None:
        bench.plan = {"write": Raised(FullError("no room"))}
        assert {*bench.save(*range(8))} == {"full"}
        assert bench.tier.problem() is None
        bench.plan = {}
        assert bench.save(1) == ["done"]

    def test_a_storage_that_keeps_failing_is_left_alone(self, bench: Bench) -> None:
        open_breaker(bench, "contains")
        assert bench.tier.problem() == "t (reading): the cable is cut"
        assert bench.tier.report().state == "failing"
        asked: list[str] = []
        bench.faulty.plan = lambda call, names: asked.append(call)  # type: ignore[func-returns-value]
        assert bench.find(1) == (False,)
        assert bench.load(1) == "unavailable"
        assert "read_into" not in asked
        assert "contains" not in asked

    def test_reading_goes_on_while_writing_fails(self, bench: Bench) -> None:
        bench.save(1)
        open_breaker(bench, "write")
        assert bench.save(2) == ["unavailable"]
        assert bench.load(1) == "done"
        assert bench.tier.problem() == "t (writing): the cable is cut"

    @pytest.mark.parametrize("call", ["contains", "write"])
    def test_it_recovers_by_itself_though_nobody_wants_anything(
        self, bench: Bench, clock: FakeClock, call: str
    ) -> None:
        open_breaker(bench, call)
        clock.now += LONGEST_WAIT
        bench.plan = {}
        bench.tier._wake.set()  # the keeper looks every two seconds
        until(lambda: bench.tier.problem() is None, "the tier to recover")
        assert bench.tier.report().state == "open"
        assert bench.save(1) == ["done"]
        assert bench.load(1) == "done"
        assert [stored.name for stored in bench.memory.scan()] == [object_name(key(1))]

    def test_it_recovers_when_it_is_used_again(self, bench: Bench, clock: FakeClock) -> None:
        open_breaker(bench, "contains")
        clock.now += LONGEST_WAIT
        bench.fail("contains")
        assert bench.find(1) == (False,)
        assert bench.tier.problem()
        clock.now += LONGEST_WAIT
        bench.plan = {}
        assert bench.find(1) == (False,)
        assert bench.tier.problem() is None

    def test_a_defect_of_an_adapter_harms_nobody_else(self, bench: Bench) -> None:
        bench.save(1)
        bench.plan = {"contains": Raised(RuntimeError("oops"))}
        assert bench.find(1) == (False,)
        bench.plan = {}
        assert bench.find(1) == (True,)
        assert bench.tier.problem() is None


class TestStuck:
    def test_nobody_waits_for_a_storage_that_does_not_answer(self, bench: Bench, clock: FakeClock) -> None:
        bench.save(1)
        bench.held.hold("read_into")
        tickets = [bench.begin_load(1, place) for place in range(6)]
        bench.wait_for_calls(4)
        assert bench.save(2) == ["done"]
        assert not any(bench.answers(ticket) for ticket in tickets)
        assert bench.tier.report().waiting_loads == 6

    def test_what_waited_too_long_for_a_thread_is_given_up(self, bench: Bench, clock: FakeClock) -> None:
        bench.save(1)
        bench.held.hold("read_into")
        stuck = [bench.begin_load(1, place) for place in range(4)]
        bench.wait_for_calls(4)
        old = [bench.begin_load(1, 4), bench.begin_find(1)]
        clock.now += 1
        young = bench.begin_load(1, 5)
        clock.now += STALE_SECONDS - 0.5
        before = bench.bytes_in(4)
        bench.tier.expire(clock.now)
        assert bench.answer(old[0], Loaded).outcome == "late"
        assert bench.answer(old[1], Found).present == (False,)
        assert not any(bench.answers(ticket) for ticket in [*stuck, young])
        bench.held.let_go()
        assert {bench.answer(ticket, Loaded).outcome for ticket in [*stuck, young]} == {"done"}
        assert bench.bytes_in(4) == before, "a slot was written after its load was given up"
        assert len(bench.answers(old[0])) == 1

    def test_questions_go_before_loads(self, bench: Bench) -> None:
        bench.save(1)
        bench.held.hold("read_into")
        for place in range(8):
            bench.begin_load(1, place)
        bench.wait_for_calls(4)
        bench.held.hold("contains")
        bench.begin_find(1)
        for _ in range(4):
            bench.begin_find(1)
        bench.held.let_go("read_into")
        until(lambda: [call for call, _ in bench.held.arrived[4:]] == ["contains"] * 4, "all threads to ask")
        assert len([event for event in bench.events if isinstance(event, Loaded)]) == 4

    def test_a_stop_answers_what_waits_and_names_the_threads_that_are_stuck(self, make: Make) -> None:
        bench = make(time.monotonic)
        bench.open()
        bench.save(1)
        bench.held.hold("read_into")
        tickets = [bench.begin_load(1, place) for place in range(6)]
        bench.wait_for_calls(4)
        names = bench.tier.stop(0.05)
        assert sorted(names) == ["l2-t-keeper", "l2-t-r0", "l2-t-r1", "l2-t-r2", "l2-t-r3"]
        given_up = [ticket for ticket in tickets if bench.answers(ticket)]
        assert [bench.answer(ticket, Loaded).outcome for ticket in given_up] == ["unavailable"] * 2
        bench.held.let_go()
        assert bench.tier.stop(20) == []
        assert sorted(event.ticket for event in bench.events if isinstance(event, Loaded)) == tickets

    def test_after_a_stop_everything_is_answered_at_once(self, bench: Bench) -> None:
        bench.save(1)
        assert bench.tier.stop(20) == []
        assert bench.tier.report().state == "closed"
        assert bench.answers(bench.begin_load(1))
        assert bench.answers(bench.begin_save(1))
        assert bench.answers(bench.begin_find(1))
        with pytest.raises(TierError):
            bench.tier.find([key(1)]).result(0)

    def test_a_tier_that_was_never_started_can_be_stopped(self, make: Make) -> None:
        bench = make()
        assert bench.tier.stop(0) == []
        assert bench.answers(bench.begin_load(1))

    def test_an_adapter_is_closed_behind_its_last_user(self, make: Make) -> None:
        bench = make(time.monotonic)
        closed = threading.Event()
        bench.faulty.close = closed.set  # type: ignore[method-assign]
        bench.open()
        bench.held.hold("write")
        bench.begin_save(1)
        bench.wait_for_calls(1)
        assert bench.tier.stop(0.05)
        assert not closed.is_set()
        bench.held.let_go()
        assert bench.tier.stop(20) == []
        assert closed.is_set()


class TestOpening:
    def test_a_storage_that_is_not_there_yet_is_opened_when_it_is(self, make: Make) -> None:
        bench = make()
        bench.fail("open")
        bench.tier.start()
        until(lambda: bench.tier.problem() == "the cable is cut", "the first try")
        assert bench.tier.report().state == "opening"
        assert bench.load(1) == "unavailable"
        assert bench.save(1) == ["unavailable"]
        with pytest.raises(TierError, match="not open: the cable is cut"):
            bench.tier.clear()
        bench.plan = {}
        assert bench.tier.await_open(20) is None
        assert bench.save(1) == ["done"]
        assert bench.tier.report().state == "open"

    def test_who_waits_for_it_is_told_why_it_is_not_open(self, make: Make) -> None:
        bench = make()
        bench.fail("open")
        bench.tier.start()
        until(lambda: bench.tier.problem() == "the cable is cut", "the first try")
        assert bench.tier.await_open(0) == "the cable is cut"

    def test_a_stop_ends_the_attempts(self, make: Make) -> None:
        bench = make()
        bench.fail("open")
        bench.tier.start()
        assert bench.tier.stop(20) == []


class TestOperators:
    def test_a_clear_deletes_everything_whoever_has_stored_it(self, bench: Bench) -> None:
        bench.save(1, 2)
        bench.memory.write("another-servers", [memoryview(b"object")])
        bench.tier.clear()
        until(lambda: bench.tier.report().work is None, "the clear")
        assert bench.memory.used() == (0, 0)
        assert bench.tier.report().work_done == 3
        assert [each.tier for each in bench.events if isinstance(each, TierCleared)] == [bench.tier.settings.name]
        assert bench.find(1, 2) == (False, False)

    @pytest.mark.parametrize("deletes", ["at once", "when it is tried again"])
    def test_what_was_being_saved_does_not_appear_after_a_clear(
        self, bench: Bench, clock: FakeClock, deletes: str
    ) -> None:
        bench.held.hold("write")
        running, waiting = [bench.begin_save(1), bench.begin_save(2)], bench.begin_save(3)
        bench.wait_for_calls(2)
        clock.now += 1
        bench.tier.clear()
        until(lambda: bench.tier.report().work is None, "the clear")
        if deletes == "when it is tried again":
            failures = [DOWN, DOWN]
            bench.faulty.plan = lambda call, names: failures.pop() if call == "delete" and failures else None
        bench.held.let_go()
        assert [bench.answer(ticket, Saved).outcome for ticket in [*running, waiting]] == ["late"] * 3
        assert not any(map(bench.stored, (1, 2, 3)))
        clock.now += 1
        assert bench.save(1) == ["done"]
        assert bench.find(1) == (True,)

    def test_a_rescan_counts_what_is_stored(self, bench: Bench) -> None:
        bench.save(1, 2, 3)
        bench.tier.rescan()
        until(lambda: bench.tier.report().work is None, "the rescan")
        report = bench.tier.report()
        assert (report.work_done, report.used_objects, report.used_bytes) == (3, 3, 3 * (HEADER_BYTES + SIZE))

    def test_one_work_is_done_at_a_time(self, bench: Bench) -> None:
        scanning, go = threading.Event(), threading.Event()

        def scan(call: str, names: object) -> None:
            if call == "scan":
                scanning.set()
                assert go.wait(30)

        bench.faulty.plan = scan
        bench.tier.rescan()
        assert scanning.wait(20)
        assert bench.tier.report().work == "rescan"
        with pytest.raises(TierError, match="busy with a rescan"):
            bench.tier.clear()
        go.set()
        until(lambda: bench.tier.report().work is None, "the rescan")
        bench.tier.clear()

    def test_work_that_fails_ends_and_other_work_can_begin(self, bench: Bench) -> None:
        for error in (DeniedError("not yours"), RuntimeError("a defect")):
            bench.plan = {"scan": Raised(error)}
            bench.tier.clear()
            until(lambda: bench.tier.report().work is None, "the clear")
        bench.plan = {}
        bench.save(1)
        bench.tier.clear()
        until(lambda: not bench.stored(1), "the clear")

    def test_what_is_there_is_asked_and_deleted_by_key(self, bench: Bench) -> None:
        bench.save(1, 2)
        assert bench.tier.find([key(1), key(5)]).result(20) == (True, False)
        assert bench.tier.delete([key(1), key(5)]).result(20) == 1
        assert bench.find(1, 2) == (False, True)

    def test_a_question_that_cannot_be_answered_says_so(self, bench: Bench) -> None:
        open_breaker(bench, "contains", "delete")
        futures: list[Future[object]] = [bench.tier.find([key(1)]), bench.tier.delete([key(1)])]  # type: ignore[list-item]
        for future in futures:
            with pytest.raises(TierError, match="unavailable"):
                future.result(20)


class TestDefects:
    """Some client libraries raise what is no Exception when they panic."""

    @pytest.fixture(autouse=True)
    def _hurry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("engine.supervision.FIRST_WAIT", 0.001)

    @pytest.fixture
    def supervisor(self, bench: Bench) -> Supervisor:
        return bench.tier._supervisor

    @pytest.mark.parametrize("error", [SystemExit(1), MemoryError()])
    @pytest.mark.parametrize("call", ["contains", "read_into", "write"])
    def test_what_was_in_hand_is_answered_once_and_the_threads_go_on(
        self, bench: Bench, supervisor: Supervisor, call: str, error: BaseException
    ) -> None:
        bench.save(1)
        armed = [Raised(error)]  # type: ignore[arg-type]
        bench.faulty.plan = lambda name, names: armed.pop() if name == call and armed else None
        outcomes = {
            "contains": lambda: bench.find(1),
            "read_into": lambda: bench.load(1),
            "write": lambda: bench.save(1),
        }
        assert outcomes[call]() in ((False,), "refused", ["refused"])
        until(lambda: sum(each.exceptions for each in supervisor.reports()) == 1, "it is counted")
        until(lambda: all(each.state == "running" for each in supervisor.reports()), "all run")
        assert [bench.save(2), bench.find(1), bench.load(1)] == [["done"], (True,), "done"]
        assert bench.tier.report().waiting_loads == bench.tier.report().waiting_saves == 0
        answers = [event for event in bench.events if isinstance(event, (Found, Loaded, Saved))]
        assert len({event.ticket for event in answers}) == len(answers)

    def test_what_could_not_be_told_is_told_when_the_thread_is_begun_again(
        self, bench: Bench, supervisor: Supervisor
    ) -> None:
        post, failures = bench.tier._bench.post, [MemoryError(), MemoryError()]

        def sometimes(event: Event) -> None:
            if failures:
                raise failures.pop()
            post(event)

        object.__setattr__(bench.tier._bench, "post", sometimes)
        assert bench.find(1) == (False,)
        assert not failures
        until(lambda: all(each.state == "running" for each in supervisor.reports()), "all run")

    def test_a_keeper_that_fails_is_begun_again_without_opening_the_storage_anew(
        self, bench: Bench, supervisor: Supervisor
    ) -> None:
        calls: list[str] = []
        armed = [Raised(SystemExit(1))]  # type: ignore[arg-type]

        def plan(call: str, names: Sequence[str]) -> Fault | None:
            calls.append(call)
            return armed.pop() if call == "used" and armed else None

        bench.faulty.plan = plan
        bench.tier._wake.set()
        until(lambda: calls.count("used") >= 2, "it has looked again")
        assert "open" not in calls
        assert [(each.name, each.exceptions) for each in supervisor.reports() if each.exceptions] == [
            ("l2-t-keeper", 1)
        ]
        bench.tier.rescan()
        until(lambda: bench.tier.report().work is None, "the rescan")

    def test_a_half_open_breaker_is_not_left_so_by_a_panic(self, bench: Bench, clock: FakeClock) -> None:
        open_breaker(bench, "contains")
        bench.plan = {"contains": Raised(SystemExit(1))}  # type: ignore[arg-type]
        clock.now += 2 * LONGEST_WAIT
        assert bench.find(1) == (False,)
        bench.plan = {}
        clock.now += 2 * LONGEST_WAIT
        bench.save(1)
        assert bench.find(1) == (True,)

    def test_a_thread_that_does_not_come_back_from_the_storage_is_named(
        self, bench: Bench, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.held.hold("contains")
        bench.begin_find(1)
        bench.wait_for_calls(1)
        monkeypatch.setattr(supervisor, "clock", lambda: time.monotonic() + 61)
        bench.tier.expire(1000.0)
        told = bench.tier.problem()
        assert told is not None
        assert told.startswith("threads do not come back from the storage: l2-t-r")
        assert bench.tier.report().state == "failing"
        bench.held.let_go()
        until(lambda: (bench.tier.expire(1000.0), bench.tier.problem())[1] is None, "it has come back")
