"""The monitor: asks the engine's other threads for signs of life, and publishes what it finds.

Guarantees: nothing that is asked can hold it up, since it never waits for one answer; what has stopped is found within
3 seconds, and so is that it goes on again; readers take no lock. If the monitor itself stops, `report` says so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

import zmq

from engine.health import Affects, CheckReport, MonitorReport
from engine.loop import Mailbox
from engine.supervision import SupervisedThread, Supervisor
from engine.transfer.worker import Sentinel, TransferWorker
from engine.wire.pinger import Pinger

logger = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 0.25
"""Between two questions to the same thread."""
PATIENCE_SECONDS: Final = 1.75
"""Silence after which a thread counts as stuck. It shows at most an interval before and one after that."""
STALE_SECONDS: Final = 3.0
"""Age of the newest look at which the monitor itself counts as stuck."""
_STOP_SECONDS: Final = 2.0
_LONGEST_WAIT: Final = 1.0
"""Before it looks again after a defect."""
_OWN_CHECKS: Final = ("engine", "transfer", "monitor")
"""Threads that have a check of their own."""

Watch = Callable[[], str | None]
"""Why something fails, None if it does not. Must only look, never wait: the monitor's own thread calls it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look at a check has found."""

    problem: str | None
    latency: float | None
    seen: float | None
    """When the newest sign of life was given, by the monitor's clock."""


class Check(Protocol):
    """Something that is looked at a few times a second, on the monitor's thread. A look never waits."""

    name: str
    affects: Affects

    def look(self, now: float) -> Finding: ...


class EngineCheck:
    """The engine thread has published a report lately; it does so each second at least."""

    name = "engine"
    affects: Affects = "liveness"

    def __init__(self, is_alive: Callable[[], bool], beat: Callable[[], float]) -> None:
        self._is_alive = is_alive
        self._beat = beat

    def look(self, now: float) -> Finding:
        beat = self._beat()
        silent = f"no beat for {now - beat:.1f} seconds" if now - beat > PATIENCE_SECONDS else None
        return Finding(silent if self._is_alive() else "the engine thread has ended", None, beat)


class SocketCheck:
    """A ping came back through the data plane's own socket."""

    name = "socket"
    affects: Affects = "liveness"

    def __init__(self, pinger: Pinger) -> None:
        self._pinger = pinger
        self._due = 0.0
        self._asked: float | None = None
        self._found = Finding(None, None, None)

    def connect(self) -> None:
        """Asks anew over a new connection."""
        self._pinger.connect()
        self._asked = None

    def look(self, now: float) -> Finding:
        if self._asked is not None:
            self._await(self._asked, now)
        if self._asked is None and now >= self._due:
            self._pinger.ask()
            self._asked, self._due = now, now + INTERVAL_SECONDS
        return self._found

    def _await(self, asked: float, now: float) -> None:
        if self._pinger.is_answered():
            self._found, self._asked = Finding(None, now - asked, now), None
        elif now - asked > PATIENCE_SECONDS:
            self._pinger.connect()
            problem = f"no answer to a ping within {PATIENCE_SECONDS:g} seconds"
            self._found, self._asked = Finding(problem, self._found.latency, self._found.seen), None


class TransferCheck:
    """The transfer thread gets round to a sentinel, or is seen to work on what it was given before."""

    name = "transfer"
    affects: Affects = "liveness"

    def __init__(self, transfers: TransferWorker, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        self._transfers = transfers
        self._clock = clock
        self._wake = wake
        self._beats = -1
        self._due = 0.0
        self._asked: float | None = None
        self._answered: float | None = None
        """Written by the transfer thread while a sentinel is under way, else by the monitor's."""
        self._latency: float | None = None
        self._seen: float | None = None
        self.moved = clock()
        """When the thread was last seen to have done anything."""

    def look(self, now: float) -> Finding:
        beats = self._transfers.beats
        if beats != self._beats:
            self._beats, self.moved = beats, now
        if self._asked is not None and self._answered is not None:
            self._latency, self._seen = self._answered - self._asked, self._answered
            self._asked = None
        if self._asked is None and now >= self._due:
            self._asked, self._answered, self._due = now, None, now + INTERVAL_SECONDS
            self._transfers.submit(Sentinel(self._answer))
        return Finding(self._transfers.ended or self._silence(now), self._latency, self._seen)

    def _silence(self, now: float) -> str | None:
        if self._asked is None or now - max(self._asked, self.moved) <= PATIENCE_SECONDS:
            return None
        return f"nothing has moved for {now - self.moved:.1f} seconds"

    def _answer(self) -> None:
        """Called on the transfer thread."""
        self._answered = self._clock()
        self._wake()


class WatchCheck:
    """What somebody else looks at."""

    def __init__(self, name: str, watch: Watch, affects: Affects) -> None:
        self.name = name
        self.affects: Affects = affects
        self._watch = watch

    def look(self, now: float) -> Finding:
        return Finding(_asked(self.name, self._watch), None, now)


class LoopsCheck:
    """Every other thread is alive and gets on, and so do the periodic jobs."""

    name = "loops"
    affects: Affects = "liveness"

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def look(self, now: float) -> Finding:
        faults = self._supervisor.faults()
        problems = [f"{name}: {fault}" for name, fault in faults.items() if name not in _OWN_CHECKS]
        return Finding("; ".join(problems) or None, None, now)


def _asked(name: str, watch: Watch) -> str | None:
    """A watch that breaks is that check's failure, and no reason to stop looking at the others."""
    try:
        return watch()
    except Exception as error:
        logger.exception("the check of %s is broken", name)
        return f"the check itself is broken: {type(error).__name__}"


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at everything. `made` and `moved`: when it was made, and when the transfer thread last moved."""

    made: float
    moved: float
    findings: tuple[tuple[Check, Finding], ...]


class Monitor:
    """Looks at every check on a thread of its own. The methods may be called from any thread."""

    def __init__(
        self,
        endpoint: str,
        is_alive: Callable[[], bool],
        beat: Callable[[], float],
        transfers: TransferWorker,
        clock: Callable[[], float],
        supervisor: Supervisor,
    ) -> None:
        """`is_alive`, `beat`: of the engine thread; the beat is when it last published a report."""
        self._beat = beat
        self._clock = clock
        self._wakeups = Mailbox()
        self._pinger = Pinger(endpoint)
        self._transfer = TransferCheck(transfers, clock, self._wakeups.wake)
        self._supervisor = supervisor
        self._socket = SocketCheck(self._pinger)
        engine, loops = EngineCheck(is_alive, beat), LoopsCheck(supervisor)
        self._checks: tuple[Check, ...] = (engine, self._socket, self._transfer, loops)
        self._registering = threading.Lock()
        self._look = _Look(clock(), clock(), ())
        self._passed = threading.Event()
        self._stop = threading.Event()
        self._is_closed = False
        self._thread: Final = SupervisedThread(supervisor, "monitor", self._run, longest_wait=_LONGEST_WAIT)

    def start(self) -> None:
        self._thread.start()

    def first_pass(self, timeout: float) -> tuple[CheckReport, ...]:
        """Waits until all liveness checks pass; returns those that do not within so many seconds."""
        if self._passed.wait(timeout):
            return ()
        checks = [check for check in self.report().checks if check.affects == "liveness"]
        return tuple(check for check in checks if not check.ok or check.age_seconds is None)

    def add_check(self, name: str, watch: Watch, affects: Affects) -> None:
        """Adds a check by its own name. Readiness alone is for what a restart would not cure."""
        with self._registering:
            self._checks = (*self._checks, WatchCheck(name, watch, affects))

    def replace_checks(self, prefix: str, watches: Mapping[str, Watch], affects: Affects) -> None:
        """Lets these be the only checks whose names begin with `prefix`."""
        with self._registering:
            others = tuple(check for check in self._checks if not check.name.startswith(prefix))
            self._checks = (*others, *(WatchCheck(name, watch, affects) for name, watch in watches.items()))

    def report(self) -> MonitorReport:
        """Everything as it was found last, and how the monitor itself does."""
        look, now = self._look, self._clock()
        checks = [_report(check, finding, now) for check, finding in look.findings]
        # What has a check of its own shows its life in a better way than by what it has in hand.
        ages = {"engine": now - self._beat(), "transfer": now - look.moved, "monitor": now - look.made}
        loops = tuple(
            replace(loop, beat_age_seconds=ages.get(loop.name, loop.beat_age_seconds))
            for loop in self._supervisor.reports()
        )
        return MonitorReport((*checks, self._own(look, now)), loops)

    def failing(self) -> tuple[CheckReport, ...]:
        """The liveness checks that fail. PERF: The same as `report` has, for a fraction of its cost."""
        look, now = self._look, self._clock()
        failing = ((check, finding) for check, finding in look.findings if finding.problem is not None)
        found = (_report(check, finding, now) for check, finding in failing if check.affects == "liveness")
        own = self._own(look, now)
        return (*found, *(() if own.ok else (own,)))

    def stop(self) -> bool:
        """Ends the thread; False if it does not end, which a watch that waits is to blame for."""
        self._thread.ask_to_end()
        self._stop.set()
        self._wakeups.wake()
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            return False
        if not self._is_closed:
            self._is_closed = True
            self._pinger.close()
            self._wakeups.close()
        return True

    def _own(self, look: _Look, now: float) -> CheckReport:
        age = now - look.made
        problem = f"no look at the checks for {age:.1f} seconds" if age > STALE_SECONDS else None
        if not look.findings:
            problem = "no look at the checks yet"
        if failure := self._thread.failure:
            problem = failure.replace("the thread", "the monitor thread", 1)
        return CheckReport("monitor", problem is None, problem, None, age, "liveness")

    def _run(self, thread: SupervisedThread) -> None:
        self._socket.connect()
        while not self._stop.is_set():
            self._publish()
            thread.rests()
            self._rest()

    def _publish(self) -> None:
        now = self._clock()
        findings = tuple((check, check.look(now)) for check in self._checks)
        self._look = _Look(now, self._transfer.moved, findings)
        vital = [finding for check, finding in findings if check.affects == "liveness"]
        if all(finding.problem is None and finding.seen is not None for finding in vital):
            self._passed.set()

    def _rest(self) -> None:
        """Until the next questions are due, or an answer has come: its latency is taken by the next look."""
        poller = zmq.Poller()
        poller.register(self._pinger.socket, zmq.POLLIN)
        poller.register(self._wakeups.fd, zmq.POLLIN)
        poller.poll(int(INTERVAL_SECONDS * 1000))
        self._wakeups.take()


def _report(check: Check, finding: Finding, now: float) -> CheckReport:
    age = None if finding.seen is None else now - finding.seen
    return CheckReport(check.name, finding.problem is None, finding.problem, finding.latency, age, check.affects)
