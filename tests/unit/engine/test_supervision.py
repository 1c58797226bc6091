"""Threads that fail: begun again, given up or ended, and what is known of each. The waits are cut short."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from engine.health import LoopReport
from engine.supervision import FAILURES_TO_TELL, SupervisedThread, Supervisor
from tests.support.polling import until
from tests.unit.engine.support import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def supervisor(clock: FakeClock) -> Supervisor:
    return Supervisor(clock)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.supervision.FIRST_WAIT", 0.001)


class Work:
    """A body that does what a test says, call by call, until it is asked to end."""

    def __init__(self) -> None:
        self.calls: list[Callable[[SupervisedThread], None]] = []
        """What the next calls do first."""
        self.called = 0
        self.go = threading.Event()

    def __call__(self, thread: SupervisedThread) -> None:
        self.called += 1
        if self.calls:
            self.calls.pop(0)(thread)
        assert self.go.wait(20)


Run = Callable[..., SupervisedThread]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def run(supervisor: Supervisor, work: Work) -> Iterator[Run]:
    started: list[SupervisedThread] = []

    def start(**options: object) -> SupervisedThread:
        started.append(SupervisedThread(supervisor, "t", work, **options))  # type: ignore[arg-type]
        started[-1].start()
        return started[-1]

    yield start
    for thread in started:
        end(thread, work)


def end(thread: SupervisedThread, work: Work) -> None:
    thread.ask_to_end()
    work.go.set()
    thread.join(20)
    assert not thread.is_alive()


def raising(error: BaseException) -> Callable[[SupervisedThread], None]:
    def call(thread: SupervisedThread) -> None:
        thread.works()
        raise error

    return call


def report(supervisor: Supervisor) -> LoopReport:
    [found] = supervisor.reports()
    return found


def test_a_thread_is_known_while_it_runs_and_forgotten_when_it_was_asked_to_end(
    supervisor: Supervisor, work: Work, run: Run
) -> None:
    thread = run()
    assert report(supervisor) == LoopReport("t", 0.0, 0, 0, "running", None)
    assert (thread.failure, supervisor.faults()) == (None, {})
    end(thread, work)
    assert supervisor.reports() == ()


@pytest.mark.parametrize("error", [KeyError("secret"), MemoryError(), SystemExit(3)])
def test_whatever_it_raises_it_is_begun_again_and_that_is_counted(
    supervisor: Supervisor, work: Work, run: Run, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    work.calls = [raising(error)]
    run()
    until(lambda: work.called == 2, "it is begun again")
    assert report(supervisor) == LoopReport("t", 0.0, 1, 1, "running", type(error).__name__)
    assert supervisor.faults() == {}
    assert caplog.text.count("a defect: the thread t is begun again") == 1


def test_it_waits_twice_as_long_each_time_up_to_a_limit_until_something_is_done(
    supervisor: Supervisor, work: Work, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []
    monkeypatch.setattr("engine.supervision.FIRST_WAIT", 1.0)

    def fail_after_something(thread: SupervisedThread) -> None:
        thread.rests()
        raise ValueError

    work.calls = [*[raising(ValueError())] * 5, fail_after_something]
    thread = SupervisedThread(supervisor, "t", work, longest_wait=6.0)
    monkeypatch.setattr(thread._asked_to_end, "wait", waits.append)
    thread.start()
    until(lambda: work.called == 7, "it is begun again")
    assert waits == [1.0, 2.0, 4.0, 6.0, 6.0, 1.0]
    end(thread, work)


def test_what_fails_again_and_again_is_told_until_it_gets_something_done(
    supervisor: Supervisor, work: Work, run: Run
) -> None:
    work.calls = [raising(KeyError()), raising(ValueError())]
    thread = run()
    until(lambda: work.called == 3, "it is begun again")
    assert thread.failure == "the thread has ended, and is begun again: ValueError"
    assert supervisor.faults() == {}
    thread.rests()
    assert thread.failure is None


def test_one_that_is_not_safe_to_begin_again_has_failed(
    supervisor: Supervisor, work: Work, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[BaseException] = []
    error = ValueError("secret")
    work.calls = [raising(error)]
    thread = run(attempts=1, on_failure=told.append)
    thread.join(20)
    assert (work.called, told) == (1, [error])
    assert report(supervisor) == LoopReport("t", 0.0, 0, 1, "failed", "ValueError")
    assert supervisor.faults() == {"t": "the thread has ended: ValueError"}
    assert "the thread t has failed" in caplog.text


def test_some_are_given_up_after_several_attempts(supervisor: Supervisor, work: Work, run: Run) -> None:
    work.calls = [raising(ValueError())] * 9
    run(attempts=3).join(20)
    assert work.called == 3
    assert report(supervisor) == LoopReport("t", 0.0, 2, 3, "failed", "ValueError")


def test_a_failure_that_is_told_early_is_counted_once(supervisor: Supervisor, work: Work, run: Run) -> None:
    error, seen = ValueError(), []

    def fail_slowly(thread: SupervisedThread) -> None:
        thread.fail(error)
        seen.append(report(supervisor).state)
        raise error

    work.calls = [fail_slowly]
    run(attempts=1).join(20)
    assert seen == ["failed"]
    assert report(supervisor).exceptions == 1


def test_an_end_that_nobody_has_asked_for_is_a_fault(
    supervisor: Supervisor, work: Work, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    work.go.set()
    run().join(20)
    assert report(supervisor).state == "ended"
    assert supervisor.faults() == {"t": "the thread has ended"}
    assert "nobody has asked it to" in caplog.text


def test_who_is_asked_to_end_while_it_waits_is_called_once_more_and_then_left(
    supervisor: Supervisor, work: Work, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body has something to close, and may fail at that, too."""
    monkeypatch.setattr("engine.supervision.FIRST_WAIT", 600.0)
    work.calls = [raising(ValueError())] * 2
    thread = run()
    until(lambda: report(supervisor).state == "restarting", "it waits")
    end(thread, work)
    assert work.called == 2
    assert supervisor.reports() == ()


def test_what_one_has_in_hand_has_an_age_and_may_have_a_limit(
    supervisor: Supervisor, work: Work, run: Run, clock: FakeClock
) -> None:
    thread = run(patience=5.0)
    clock.now += 100
    assert (report(supervisor).beat_age_seconds, supervisor.faults()) == (0.0, {})
    thread.works()
    clock.now += 5
    assert (report(supervisor).beat_age_seconds, supervisor.faults()) == (5.0, {})
    clock.now += 1
    assert supervisor.faults() == {"t": "nothing has moved for 6.0 seconds"}
    thread.works()
    assert supervisor.faults() == {}
    clock.now += 100
    thread.rests()
    assert (report(supervisor).beat_age_seconds, supervisor.faults()) == (0.0, {})


def test_one_that_cannot_begin_is_not_known(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        SupervisedThread(supervisor, "t", lambda thread: None).start()
    assert supervisor.reports() == ()


def test_a_job_that_fails_is_told_only_if_it_goes_on(supervisor: Supervisor, clock: FakeClock) -> None:
    job = supervisor.job("tick:a")
    for _ in range(FAILURES_TO_TELL - 1):
        job.failed(KeyError("secret"))
    clock.now += 4
    assert report(supervisor) == LoopReport("tick:a", 4.0, 0, 4, "restarting", "KeyError")
    assert supervisor.faults() == {}
    job.failed(ValueError())
    assert report(supervisor).state == "failed"
    assert supervisor.faults() == {"tick:a": "it has failed 5 times in a row: ValueError"}
    job.succeeded(clock.now)
    assert report(supervisor) == LoopReport("tick:a", 0.0, 0, 5, "running", "ValueError")
    assert supervisor.faults() == {}
