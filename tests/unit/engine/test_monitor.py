"""What each check makes of silence, with a clock that stands still; and the monitor's own thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from engine import CheckReport, EngineStuckError, LoopReport, MonitorReport, Runtime, StartError
from engine.health import PERIODIC_JOBS
from engine.monitor import (
    INTERVAL_SECONDS,
    PATIENCE_SECONDS,
    EngineCheck,
    LoopsCheck,
    SocketCheck,
    TransferCheck,
    WatchCheck,
)
from engine.supervision import SupervisedThread, Supervisor
from engine.transfer.worker import Sentinel
from engine.wire.pinger import Pinger, reachable
from tests.support.polling import until
from tests.unit.engine.support import FakeClock

BARELY = PATIENCE_SECONDS - 0.01
TOO_LONG = PATIENCE_SECONDS + 0.01


def passing(name: str, server: Runtime) -> bool:
    return check(name, server).ok


def check(name: str, server: Runtime) -> CheckReport:
    [found] = [each for each in server.checks().checks if each.name == name]
    return found


def loop(name: str, server: Runtime) -> LoopReport:
    [found] = [each for each in server.checks().loops if each.name == name]
    return found


def waiting(go_on: threading.Event, at_work: threading.Event | None = None) -> Callable[[], None]:
    """A watch that does what none may."""

    def watch() -> None:
        if at_work is not None:
            at_work.set()
        assert go_on.wait(20)

    return watch


class TestEngineCheck:
    def test_a_beat_is_fresh_for_a_while(self) -> None:
        looked = EngineCheck(lambda: True, lambda: 100.0)
        assert looked.look(100 + BARELY).problem is None
        assert looked.look(100 + TOO_LONG).problem == "no beat for 1.8 seconds"
        assert looked.look(100 + BARELY).seen == 100.0

    def test_a_thread_that_has_ended_is_not_just_silent(self) -> None:
        assert EngineCheck(lambda: False, lambda: 100.0).look(100.0).problem == "the engine thread has ended"


class FakePinger:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers = False

    def ask(self) -> None:
        self.calls.append("ask")

    def is_answered(self) -> bool:
        return self.answers

    def connect(self) -> None:
        self.calls.append("connect")


class TestSocketCheck:
    @pytest.fixture
    def pinger(self) -> FakePinger:
        return FakePinger()

    @pytest.fixture
    def socket(self, pinger: FakePinger) -> SocketCheck:
        return SocketCheck(pinger)  # type: ignore[arg-type]

    def test_before_the_first_answer_it_has_seen_nothing(self, socket: SocketCheck) -> None:
        found = socket.look(100.0)
        assert (found.problem, found.latency, found.seen) == (None, None, None)

    def test_an_answer_has_a_latency(self, socket: SocketCheck, pinger: FakePinger) -> None:
        socket.look(100.0)
        pinger.answers = True
        found = socket.look(100.125)
        assert (found.problem, found.latency, found.seen) == (None, 0.125, 100.125)

    def test_one_ping_is_under_way_at_a_time_and_not_more_often_than_needed(
        self, socket: SocketCheck, pinger: FakePinger
    ) -> None:
        socket.look(100.0)
        socket.look(100 + BARELY)
        assert pinger.calls == ["ask"]
        pinger.answers = True
        socket.look(101.0)
        assert pinger.calls == ["ask", "ask"]
        socket.look(101.0)
        assert pinger.calls == ["ask", "ask"]
        socket.look(101 + INTERVAL_SECONDS)
        assert pinger.calls == ["ask", "ask", "ask"]

    def test_without_an_answer_it_tries_another_connection_and_fails_until_one_comes(
        self, socket: SocketCheck, pinger: FakePinger
    ) -> None:
        socket.look(100.0)
        assert socket.look(100 + TOO_LONG).problem == "no answer to a ping within 1.75 seconds"
        assert pinger.calls == ["ask", "connect", "ask"]
        assert socket.look(102.0).problem is not None
        pinger.answers = True
        assert socket.look(102.5).problem is None


class FakeTransfers:
    def __init__(self) -> None:
        self.beats = 0
        self.ended: str | None = None
        self.submitted: list[Sentinel] = []

    def submit(self, task: Sentinel) -> None:
        self.submitted.append(task)


class TestTransferCheck:
    @pytest.fixture
    def transfers(self) -> FakeTransfers:
        return FakeTransfers()

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def transfer(self, transfers: FakeTransfers, clock: FakeClock) -> TransferCheck:
        made = TransferCheck(transfers, clock, lambda: None)  # type: ignore[arg-type]
        made.look(1000.0)
        return made

    def test_a_sentinel_that_is_done_is_a_sign_of_life(
        self, transfer: TransferCheck, transfers: FakeTransfers, clock: FakeClock
    ) -> None:
        clock.now = 1000.5
        transfers.submitted[0].done()
        found = transfer.look(1001.0)
        assert (found.problem, found.latency, found.seen) == (None, 0.5, 1000.5)
        assert len(transfers.submitted) == 2

    def test_nothing_done_is_a_failure_and_no_second_sentinel_is_queued(
        self, transfer: TransferCheck, transfers: FakeTransfers
    ) -> None:
        assert transfer.look(1000 + BARELY).problem is None
        assert transfer.look(1000 + TOO_LONG).problem == "nothing has moved for 1.8 seconds"
        assert len(transfers.submitted) == 1

    def test_a_sentinel_behind_work_that_moves_on_may_wait(
        self, transfer: TransferCheck, transfers: FakeTransfers
    ) -> None:
        for second in range(1001, 1100):
            transfers.beats += 1
            assert transfer.look(float(second)).problem is None
        assert transfer.look(1099 + TOO_LONG).problem is not None
        transfers.beats += 1
        assert transfer.look(1101.0).problem is None

    def test_a_monitor_that_was_held_up_itself_does_not_blame_the_transfers(
        self, transfer: TransferCheck, transfers: FakeTransfers, clock: FakeClock
    ) -> None:
        transfers.submitted[0].done()
        assert transfer.look(1100.0).problem is None

    def test_a_thread_that_has_ended_says_of_what(self, transfer: TransferCheck, transfers: FakeTransfers) -> None:
        transfers.ended = "the transfer thread has ended: ValueError()"
        assert transfer.look(1000.1).problem == transfers.ended


class TestLoopsCheck:
    def test_it_names_every_thread_and_job_that_has_failed(self) -> None:
        supervisor = Supervisor(lambda: 1.0)
        loops = LoopsCheck(supervisor)
        assert loops.look(1.0).problem is None
        for name in ("tick:a", "tick:b", "tick:c"):
            job = supervisor.job(name)
            for _ in range(5 if name != "tick:a" else 4):
                job.failed(KeyError("secret"))
        told = "it has failed 5 times in a row: KeyError"
        assert loops.look(1.0).problem == f"tick:b: {told}; tick:c: {told}"

    def test_what_has_a_check_of_its_own_is_not_named_twice(self) -> None:
        supervisor = Supervisor(lambda: 1.0)
        for name in ("engine", "transfer", "monitor", "advisor"):
            supervisor.add(SupervisedThread(supervisor, name, lambda thread: None))
        assert LoopsCheck(supervisor).look(1.0).problem == "advisor: the thread has ended"


class TestWatchCheck:
    def test_a_watch_that_breaks_is_a_failure_of_its_own(self, caplog: pytest.LogCaptureFixture) -> None:
        def broken() -> str | None:
            raise KeyError("secret")

        assert WatchCheck("a", broken, "liveness").look(1.0).problem == "the check itself is broken: KeyError"
        assert "the check of a is broken" in caplog.text


class TestPinger:
    @pytest.mark.parametrize(
        ("bound", "connected"),
        [
            ("tcp://0.0.0.0:5555", "tcp://127.0.0.1:5555"),
            ("tcp://[::]:5555", "tcp://[::1]:5555"),
            ("tcp://10.1.2.3:5555", "tcp://10.1.2.3:5555"),
            ("tcp://[fe80::1]:5555", "tcp://[fe80::1]:5555"),
        ],
    )
    def test_it_knows_where_to_connect_to(self, bound: str, connected: str) -> None:
        assert reachable(bound) == connected

    @pytest.fixture
    def router(self) -> Iterator[zmq.Socket[bytes]]:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as made:
            made.setsockopt(zmq.RCVTIMEO, 20_000)
            made.setsockopt(zmq.LINGER, 0)
            made.bind("tcp://127.0.0.1:0")
            yield made

    @pytest.fixture
    def pinger(self, router: zmq.Socket[bytes]) -> Iterator[Pinger]:
        made = Pinger(router.getsockopt_string(zmq.LAST_ENDPOINT))
        made.connect()
        yield made
        made.close()

    def test_only_the_answer_to_the_newest_ping_counts(self, router: zmq.Socket[bytes], pinger: Pinger) -> None:
        pinger.ask()
        first = router.recv_multipart()
        pinger.ask()
        second = router.recv_multipart()
        router.send_multipart([*first, b"\xa2OK"])
        assert pinger.socket.poll(20_000)
        assert not pinger.is_answered()
        router.send_multipart([*second, b"\xa2OK"])
        assert pinger.socket.poll(20_000)
        assert pinger.is_answered()
        assert not pinger.is_answered()

    def test_a_new_connection_asks_anew(self, router: zmq.Socket[bytes], pinger: Pinger) -> None:
        pinger.ask()
        before = router.recv_multipart()
        pinger.connect()
        pinger.ask()
        after = router.recv_multipart()
        assert before[0] != after[0]
        router.send_multipart([*after, b"\xa2OK"])
        assert pinger.socket.poll(20_000)
        assert pinger.is_answered()

    def test_nobody_there_is_no_error(self) -> None:
        pinger = Pinger("tcp://127.0.0.1:1")
        for _ in range(3):
            pinger.connect()
            pinger.ask()
            assert not pinger.is_answered()
        pinger.close()


class TestMonitor:
    @pytest.fixture
    def server(self, start_server: Callable[..., Runtime]) -> Runtime:
        return start_server()

    def test_a_runtime_that_is_made_has_passed_every_check(self, server: Runtime) -> None:
        report = server.checks()
        assert [check.name for check in report.checks] == ["engine", "socket", "transfer", "loops", "monitor"]
        assert [check for check in report.checks if not check.ok or check.affects != "liveness"] == []
        assert all(check.age_seconds is not None and 0 <= check.age_seconds < 20 for check in report.checks)
        latencies = {check.name: check.latency_seconds for check in report.checks if check.latency_seconds is not None}
        assert set(latencies) == {"socket", "transfer"}
        assert all(0 <= latency < 20 for latency in latencies.values())

    def test_every_loop_beats(self, server: Runtime) -> None:
        loops = {loop.name: loop for loop in server.checks().loops}
        threads = {"engine", "transfer", "monitor", "connections", "advisor", "recorder"}
        assert threads | {f"tick:{job}" for job in PERIODIC_JOBS} == set(loops)
        assert {(loop.state, loop.exceptions, loop.restarts, loop.problem) for loop in loops.values()} == {
            ("running", 0, 0, None)
        }
        assert all(0 <= loop.beat_age_seconds < 20 for loop in server.checks().loops)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_a_wildcard_address_is_reached_by_loopback(self, start_server: Callable[..., Runtime], host: str) -> None:
        try:
            server = start_server(host=host)
        except StartError:
            pytest.skip(f"{host} cannot be listened on here")
        assert passing("socket", server)

    def test_its_pings_are_nobodys_work(self, server: Runtime) -> None:
        socket: Any = server._monitor._checks[1]
        due = socket._due
        until(lambda: socket._due > due + INTERVAL_SECONDS, "further pings")
        report = server.status()
        assert (report.workers, report.active_sessions, report.running_transfers) == ((), 0, 0)
        assert (report.failed_requests, report.dropped_messages, report.dropped_replies) == (0, 0, 0)
        assert (report.l1.hit_chunks, report.l1.missed_chunks) == (0, 0)

    def test_a_check_of_somebody_else_has_a_name(self, server: Runtime) -> None:
        why: list[str | None] = [None]
        server._monitor.add_check("config", lambda: why[0], "liveness")
        until(lambda: "config" in {each.name for each in server.checks().checks}, "it is looked at")
        why[0] = "it has ended"
        until(
            lambda: [str(each) for each in server.checks().checks if not each.ok] == ["config: it has ended"], "named"
        )
        why[0] = None
        until(lambda: passing("config", server), "it is back")

    def test_a_readiness_check_is_told_from_the_others(self, server: Runtime) -> None:
        server._monitor.add_check("l2.fs", lambda: "no such folder", "readiness")
        report: MonitorReport = until(
            lambda: (found := server.checks()).failing(liveness_only=False) and found, "the check fails"
        )
        assert [str(each) for each in report.failing(liveness_only=False)] == ["l2.fs: no such folder"]
        assert report.failing(liveness_only=True) == ()
        assert server.status().is_healthy
        server._monitor._passed.clear()
        assert server._monitor.first_pass(20) == ()

    def test_a_defect_does_not_end_it_and_is_counted(
        self, server: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        publish, failures = server._monitor._publish, iter([ValueError("x"), zmq.ZMQError()])

        def sometimes() -> None:
            for failure in failures:
                raise failure
            publish()

        monkeypatch.setattr(server._monitor, "_publish", sometimes)
        until(lambda: loop("monitor", server).restarts == 2, "it goes on")
        until(lambda: passing("monitor", server), "it has looked again")
        assert loop("monitor", server).exceptions == 2
        assert "a defect: the thread monitor is begun again" in caplog.text

    def test_its_own_end_is_a_failure(self, server: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        def end() -> None:
            raise SystemExit

        monkeypatch.setattr(server._monitor, "_publish", end)
        told = "the monitor thread has ended, and is begun again: SystemExit"
        until(lambda: check("monitor", server).detail == told, "it is missed")

    def test_its_silence_is_a_failure(self, server: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        go_on = threading.Event()
        monkeypatch.setattr("engine.monitor.STALE_SECONDS", 0.5)
        server._monitor.add_check("waits", waiting(go_on), "liveness")
        detail = until(lambda: check("monitor", server).detail, "it is missed")
        assert detail.startswith("no look at the checks for 0.")
        go_on.set()
        until(lambda: passing("monitor", server), "it is back")

    def test_a_watch_that_waits_does_not_hold_up_the_end(
        self, server: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_work, go_on = threading.Event(), threading.Event()
        monkeypatch.setattr("engine.monitor._STOP_SECONDS", 0.05)
        server._monitor.add_check("waits", waiting(go_on, at_work), "liveness")
        assert at_work.wait(20)
        with pytest.raises(EngineStuckError, match="threads that do not end: monitor"):
            server.stop()
        go_on.set()
        until(lambda: not server._monitor._thread.is_alive(), "the monitor has ended")
        server.stop()
