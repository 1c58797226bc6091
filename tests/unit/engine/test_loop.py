"""The engine thread's loop, one step at a time on the test's own thread; the clock stands still."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from math import inf
from typing import Any

import pytest
import zmq

from engine import AmbiguousError, Cleared, EngineStoppedError
from engine.commands import AwaitJob, ClearAll, Selection, Shrink, StartClear
from engine.core import Engine
from engine.discovery import make_l2_adapter
from engine.events import (
    CommandAsked,
    CommandDone,
    Continue,
    Continued,
    Copy,
    CopyEnded,
    Discard,
    Effect,
    Event,
    Failed,
    Map,
    Reply,
    RequestArrived,
    Tick,
    TransfersEnded,
    Unmap,
    UnmapEnded,
    Warn,
)
from engine.l2.group import TierGroup
from engine.lookups import Lookups
from engine.loop import EngineLoop, Mailbox
from engine.settings import Liveness
from engine.wire import messages as m
from engine.wire.router import Router
from tests.unit.engine.driver import Driver
from tests.unit.engine.support import Client, FakeClock, key, unpacked

COPY = Copy(1, 1, "store", [[1]], ())


class FakeEngine:
    """Notes what happens, and wants what a test says."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.wants: Callable[[Event], list[Effect]] = lambda event: []
        self.due = inf

    def handle(self, event: Event) -> list[Effect]:
        self.events.append(event)
        return self.wants(event)

    def report(self, **counted: Any) -> Any:
        return counted


class FakeTransfers:
    def __init__(self) -> None:
        self.submitted: list[object] = []
        self.stopped = 0
        self.on_stop: Callable[[], None] = lambda: None
        self.ends = True

    def submit(self, task: object) -> None:
        self.submitted.append(task)

    def stop(self) -> bool:
        self.stopped += 1
        self.on_stop()
        return self.ends


class Bench:
    """A loop with a fake engine behind a real socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.engine = FakeEngine()
        self.transfers = FakeTransfers()
        self.clock = FakeClock()
        self.warnings: list[str] = []
        self.mailbox = Mailbox()
        self.router = Router(context, "127.0.0.1", 0, self.warnings.append)
        self.client = Client(context, self.router.endpoint)
        self.tiers = TierGroup(make_l2_adapter, memoryview(bytearray()), self.mailbox.post, self.clock)
        self.loop = EngineLoop(
            self.engine,  # type: ignore[arg-type]
            self.router,
            self.mailbox,
            self.transfers,  # type: ignore[arg-type]
            self.tiers,
            self.clock,
        )

    def arrive(self, *messages: m.Message) -> None:
        """Requests that have arrived, and wait."""
        for message in messages:
            self.client.start(message)
        assert self.router.socket.poll(20_000)

    def close(self) -> None:
        self.client.close()
        self.router.close()
        self.mailbox.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with zmq.Context() as context:
        made = Bench(context)
        yield made
        made.close()


class Poller:
    """Says of each poll what was there, after so many seconds."""

    def __init__(
        self, clock: FakeClock, *answers: tuple[list[object], float], meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        self._clock = clock
        self._answers = list(answers)
        self._meanwhile = meanwhile
        self.timeouts: list[int] = []

    def poll(self, timeout: int) -> list[object]:
        self.timeouts.append(timeout)
        self._meanwhile()
        found, seconds = self._answers.pop(0)
        self._clock.now += seconds
        return found


class TestMailbox:
    @pytest.fixture
    def mailbox(self) -> Iterator[Mailbox]:
        made = Mailbox()
        yield made
        made.close()

    def test_events_are_taken_in_order_and_once(self, mailbox: Mailbox) -> None:
        events: list[Event] = [Tick(float(number)) for number in range(3)]
        for event in events:
            mailbox.post(event)
        assert mailbox.take() == events
        assert mailbox.take() == []

    def test_it_is_readable_while_there_is_something(self, mailbox: Mailbox) -> None:
        def readable() -> bool:
            return bool(select.select([mailbox.fd], [], [], 0)[0])

        assert not readable()
        assert not mailbox.is_awake
        mailbox.post(Tick(1.0))
        mailbox.wake()
        assert readable()
        assert mailbox.is_awake
        mailbox.take()
        assert not readable()
        assert not mailbox.is_awake

    def test_being_woken_without_an_event_is_no_matter(self, mailbox: Mailbox) -> None:
        mailbox.wake()
        assert mailbox.take() == []


def test_a_request_that_waited_may_have_come_since_the_last_look(bench: Bench) -> None:
    bench.arrive(m.Noop())
    bench.clock.now += 7
    bench.loop._wait(Poller(bench.clock))  # type: ignore[arg-type]
    bench.loop._step()
    [request] = [event for event in bench.engine.events if isinstance(event, RequestArrived)]
    assert (request.received, request.now) == (1000.0, 1007.0)


def test_a_request_that_was_waited_for_has_just_come(bench: Bench) -> None:
    bench.clock.now += 7
    bench.loop._wait(Poller(bench.clock, ([1], 2), meanwhile=lambda: bench.arrive(m.Noop())))  # type: ignore[arg-type]
    bench.loop._step()
    [request] = [event for event in bench.engine.events if isinstance(event, RequestArrived)]
    assert (request.received, request.now) == (1009.0, 1009.0)


def test_it_waits_no_longer_than_until_the_next_tick(bench: Bench) -> None:
    bench.clock.now += 0.25
    poller = Poller(bench.clock, ([], 0), ([], 0))
    bench.loop._wait(poller)  # type: ignore[arg-type]
    bench.clock.now += 5
    bench.loop._wait(poller)  # type: ignore[arg-type]
    assert poller.timeouts == [750, 0]


def test_it_does_not_wait_when_another_thread_has_woken_it(bench: Bench) -> None:
    bench.mailbox.wake()
    bench.loop._wait(Poller(bench.clock))  # type: ignore[arg-type]
    bench.loop._step()
    poller = Poller(bench.clock, ([], 0))
    bench.loop._wait(poller)  # type: ignore[arg-type]
    assert poller.timeouts


def test_time_is_told_once_a_second(bench: Bench) -> None:
    for _ in range(8):
        bench.clock.now += 0.5
        bench.loop._step()
    assert bench.engine.events == [Tick(1001.0), Tick(1002.0), Tick(1003.0), Tick(1004.0)]


def test_finished_work_comes_before_new_requests(bench: Bench) -> None:
    bench.arrive(m.Noop())
    bench.mailbox.post(CopyEnded(1000.0, 1, None))
    bench.loop._step()
    assert [type(event) for event in bench.engine.events] == [CopyEnded, RequestArrived]


def test_a_flood_of_requests_does_not_keep_finished_work_waiting(bench: Bench) -> None:
    bench.arrive(*[m.Noop()] * 200)
    seen = 0
    while seen < 200:
        assert bench.router.socket.poll(20_000)
        bench.loop._step()
        assert len(bench.engine.events) - seen <= 64
        seen = len(bench.engine.events)


def test_everything_the_engine_wants_is_done(bench: Bench) -> None:
    layout: Any = None
    wanted: list[Effect] = [COPY, Map(1, layout), Unmap(1), Discard(0, 4096), Warn("careful")]

    def want(event: Event) -> list[Effect]:
        assert isinstance(event, RequestArrived)
        return [*wanted, Reply(event.to, "done")]

    bench.engine.wants = want
    bench.arrive(m.Noop())
    bench.loop._step()
    assert unpacked(bench.client.receive()[2]) == "done"
    assert bench.transfers.submitted == wanted[:4]
    assert bench.warnings == ["careful"]


def test_a_defect_costs_one_request_its_answer_and_nobody_else(bench: Bench) -> None:
    def want(event: Event) -> list[Effect]:
        assert isinstance(event, RequestArrived)
        if isinstance(event.message, m.CommitStore | m.QueryPrefetchStatus):
            raise KeyError("a defect")
        return [Reply(event.to, "OK")]

    bench.engine.wants = want
    bench.arrive(m.QueryPrefetchStatus("r"), m.Noop())
    answers = []
    while len(answers) < 2:
        bench.loop._step()
        while bench.client._socket.poll(10):
            answers.append(unpacked(bench.client.receive()[2]))
    assert answers == [0, "OK"]
    assert bench.router.failed_requests == 1


def test_a_new_report_is_published_after_every_step(bench: Bench) -> None:
    bench.clock.now += 3
    bench.loop._step()
    made, report = bench.loop.published
    assert made == 1003.0
    assert report.pop("lookup_seconds").total == 0
    counts = {"failed_requests": 0, "dropped_messages": 0, "dropped_replies": 0}
    assert report == {**counts, "cut_connections": (), "tiers": {}}


def test_a_lookup_is_timed_and_nothing_else_is(bench: Bench) -> None:
    def take_time(event: Event) -> list[Effect]:
        bench.clock.now += 0.0005
        return []

    bench.engine.wants = take_time
    bench.arrive(m.Noop(), m.Lookup(key(range(16)), b"\x01"), m.EndSession("r"), m.Lookup(key(range(16)), b"\x01"))
    while len(bench.engine.events) < 4:
        bench.loop._step()
    seconds = bench.loop.published[1]["lookup_seconds"]
    assert (seconds.total, round(seconds.sum, 6)) == (2, 0.001)
    assert seconds.counts[seconds.bounds.index(0.001)] + seconds.counts[seconds.bounds.index(0.0005)] == 2


def test_a_command_is_carried_out_at_the_time_of_its_turn_whatever_happened_since_it_was_asked(bench: Bench) -> None:
    bench.loop.ask(ClearAll())
    bench.clock.now = 1003.0
    bench.loop._step()

    assert [event.now for event in bench.engine.events if isinstance(event, CommandAsked)] == [1003.0]


def test_a_command_is_answered_by_the_engine(bench: Bench) -> None:
    bench.engine.wants = lambda event: (
        [CommandDone(event.ticket, Cleared(event.ticket, 5))] if isinstance(event, CommandAsked) else []
    )
    futures = [bench.loop.ask(ClearAll()) for _ in range(2)]
    futures[0].cancel()
    bench.loop._step()
    assert futures[1].result(0) == Cleared(1, 5)


@pytest.mark.parametrize("error", [AmbiguousError("say which"), ValueError("a defect")])
def test_a_command_that_fails_is_its_askers_business(bench: Bench, error: Exception) -> None:
    def fail(event: Event) -> list[Effect]:
        raise error

    bench.engine.wants = fail
    future, called_off = bench.loop.ask(ClearAll()), bench.loop.ask(ClearAll())
    called_off.cancel()
    bench.loop._step()
    assert future.exception(0) is error


def test_who_wants_to_continue_has_its_turn_after_the_requests(bench: Bench) -> None:
    bench.engine.wants = lambda event: [Continue()] if isinstance(event, CommandAsked) else []
    bench.loop.ask(ClearAll())
    bench.arrive(m.Noop())
    bench.loop._step()
    bench.loop._step()
    assert [type(event) for event in bench.engine.events] == [CommandAsked, RequestArrived, Continued]


def test_a_job_and_requests_take_turns(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.operators._PART", 2)
    driver = Driver()
    driver.register()
    for first in range(0, 1000, 100):
        driver.store(range(first, first + 16))
    bench.loop._engine = driver.engine
    started = bench.loop.ask(StartClear(Selection(model_name="m"), dry_run=False))
    ended = bench.loop.ask(AwaitJob(1))
    left = []
    while not ended.done():
        bench.arrive(m.Noop())
        bench.loop._step()
        assert unpacked(bench.client.receive()[2]) == "OK"
        left.append(driver.cache.ready_objects)
    assert left == [8, 6, 4, 2, 0]
    assert started.result(0).state == "running"
    report = ended.result(0)
    assert report is not None
    assert (report.state, report.objects) == ("done", 10)


def test_a_job_that_waits_for_something_keeps_nobody_busy(bench: Bench) -> None:
    driver = Driver(slots=1)
    driver.register()
    driver.store(range(16))
    driver.lookup(range(16))
    bench.loop._engine = driver.engine
    bench.loop.ask(Shrink(0))
    for _ in range(3):
        bench.loop._step()
    assert bench.mailbox.take() == []
    driver.end()
    bench.clock.now += 1
    bench.loop._step()
    assert bench.transfers.submitted == [Discard(0, 4096)]


def test_a_command_after_the_stop_is_called_off(bench: Bench) -> None:
    bench.loop.stop()
    assert bench.loop.ask(ClearAll()).cancelled()


def test_at_the_end_whoever_waits_is_answered(bench: Bench) -> None:
    """What the transfers still finish is told to the engine, and then that nothing more will."""
    bench.transfers.on_stop = lambda: bench.mailbox.post(UnmapEnded(1000.0, 1))
    waiting: Future[Cleared] = bench.loop.ask(ClearAll())
    called_off = bench.loop.ask(ClearAll())
    called_off.cancel()
    bench.loop.stop()
    bench.loop.run()
    assert [type(event) for event in bench.engine.events] == [CommandAsked, CommandAsked, UnmapEnded, TransfersEnded]
    assert isinstance(waiting.exception(0), EngineStoppedError)
    assert bench.router.socket.closed


def test_where_a_copy_does_not_end_nobody_is_told_that_it_has(bench: Bench) -> None:
    """Its client would give the blocks to somebody else while they may still be written."""
    bench.transfers.ends = False
    bench.loop.stop()
    bench.loop.run()
    assert bench.engine.events == []
    assert bench.router.socket.closed


def test_the_last_answers_have_a_second_to_leave(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lingers: list[float] = []
    monkeypatch.setattr(bench.router, "close", lingers.append)
    bench.loop.stop()
    bench.loop.run()
    monkeypatch.undo()
    assert lingers == [1.0]


def test_at_the_end_a_real_engine_answers_what_was_asked_before(bench: Bench) -> None:
    driver = Driver()
    driver.register()
    bench.loop._engine = engine = driver.engine
    assert isinstance(engine, Engine)
    bench.arrive(m.Store(key(range(16), worker_id=0), 1, [[1, 2]], b""))
    bench.loop._step()
    assert len(bench.transfers.submitted) == 1
    bench.loop.stop()
    bench.loop.run()
    assert unpacked(bench.client.receive()[2]) == [b"", False]


def broken_at(kind: type[Event]) -> Callable[[Event], list[Effect]]:
    """An engine that answers no request, and breaks at one kind of event."""

    def want(event: Event) -> list[Effect]:
        if isinstance(event, kind):
            raise RuntimeError("a broken invariant")
        return []

    return want


def answers(bench: Bench, uids: list[bytes]) -> dict[int, Any]:
    """By the index of their request, everything that comes within a moment."""
    found = {}
    while bench.client._socket.poll(200):
        uid, _, *value = bench.client.receive()
        found[uids.index(uid)] = unpacked(value[0]) if value else None
    return found


WAITING = (
    m.Store(key(range(16), worker_id=0), 1, [[1, 2]], b""),
    m.Retrieve(key(range(16), worker_id=0), 1, [[1, 2]], b"", 0),
    m.WaitPrefetchStatus("r", 600.0),
    m.UnregisterKVCache(1),
    m.PrepareRetrieve(key(range(16), worker_id=0), 1),
    m.Ping(1),
)


def test_an_engine_that_breaks_leaves_nobody_without_an_answer(bench: Bench) -> None:
    """Neither those whose requests it had, nor those whose requests had only arrived."""
    bench.engine.wants = broken_at(CopyEnded)
    uids = [bench.client.start(message) for message in WAITING]
    while len(bench.engine.events) < len(WAITING):
        assert bench.router.socket.poll(20_000)
        bench.loop._step()
    bench.mailbox.post(CopyEnded(1000.0, 1, None))
    uids.append(bench.client.start(m.Noop()))
    uids.append(bench.client.start(m.QueryPrefetchStatus("r")))
    assert bench.router.socket.poll(20_000)
    told: list[BaseException] = []
    with pytest.raises(RuntimeError, match="a broken invariant") as caught:
        bench.loop.run(told.append)
    assert told == [caught.value]
    refused = {"success": False, "data": b"", "context": {}}
    assert answers(bench, uids) == {
        0: [b"", False],
        1: [b"", False],
        2: 0,
        3: None,
        4: refused,
        5: False,
        6: "OK",
        7: 0,
    }


def test_where_a_copy_goes_on_nobody_is_told_to_use_its_blocks(bench: Bench) -> None:
    bench.transfers.ends = False
    bench.engine.wants = broken_at(CopyEnded)
    uids = [bench.client.start(message) for message in WAITING]
    while len(bench.engine.events) < len(WAITING):
        assert bench.router.socket.poll(20_000)
        bench.loop._step()
    bench.mailbox.post(CopyEnded(1000.0, 1, None))
    with pytest.raises(RuntimeError, match="a broken invariant"):
        bench.loop.run()
    assert set(answers(bench, uids)) == {2, 4}


def test_who_was_answered_is_not_answered_again(bench: Bench) -> None:
    def want(event: Event) -> list[Effect]:
        if isinstance(event, RequestArrived) and isinstance(event.message, m.Ping):
            raise KeyError("a defect")
        return [Reply(event.to, "OK")] if isinstance(event, RequestArrived) else []

    bench.engine.wants = want
    bench.arrive(m.Noop(), m.Ping(1))
    while len(bench.engine.events) < 2:
        bench.loop._step()
    assert bench.loop._owed == {}
    assert [unpacked(bench.client.receive()[2]) for _ in range(2)] == ["OK", False]


def test_a_job_that_fails_is_counted_and_the_others_have_run(bench: Bench) -> None:
    bench.engine.wants = lambda event: [Failed("pins", KeyError("a defect"))] if isinstance(event, Tick) else []
    for _ in range(2):
        bench.clock.now += 1
        bench.loop._step()
    reports = {name: job.report(bench.clock.now) for name, job in bench.loop._jobs.items()}
    assert {name for name, report in reports.items() if report.exceptions} == {"pins"}
    assert (reports["pins"].exceptions, reports["pins"].beat_age_seconds) == (2, 2.0)
    assert {report.beat_age_seconds for name, report in reports.items() if name != "pins"} == {0.0}


def test_a_real_engine_goes_on_with_the_jobs_behind_one_that_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Lookups, *_: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(Lookups, "expire", fail)
    driver = Driver(liveness=Liveness(registration_grace=1.0))
    driver.register()
    bench.loop._engine = driver.engine
    for _ in range(4):
        bench.clock.now += 1.0
        bench.loop._step()
    assert driver.engine.report(failed_requests=0, dropped_messages=0, dropped_replies=0).workers == ()
    assert bench.loop._jobs["leases"].report(bench.clock.now).exceptions == 4


def test_the_transfers_are_ended_and_the_socket_closed_even_if_the_engine_fails(bench: Bench) -> None:
    def fail(event: Event) -> list[Effect]:
        raise RuntimeError("a broken invariant")

    bench.mailbox.post(UnmapEnded(1000.0, 1))
    bench.engine.wants = fail
    waiting = bench.loop.ask(ClearAll())
    with pytest.raises(RuntimeError, match="a broken invariant"):
        bench.loop.run()
    assert bench.transfers.stopped == 1
    assert bench.router.socket.closed
    assert isinstance(waiting.exception(0), EngineStoppedError)
    assert bench.loop.ask(ClearAll()).cancelled()
