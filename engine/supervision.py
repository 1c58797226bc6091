"""Every thread and every periodic job: made here, watched here, and begun again here where that is safe.

Guarantees: whatever a thread raises is logged and counted; a thread ends because it was asked to, or a probe says that
it has ended; what is begun again waits longer each time, up to a limit, until it gets something done; reading takes no
lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from engine.health import LoopReport, ThreadState

logger = logging.getLogger(__name__)

FIRST_WAIT: Final = 0.1
LONGEST_WAIT: Final = 30.0
FAILURES_TO_TELL: Final = 5
"""Failures of a periodic job in a row after which a probe tells: they are a second apart."""


class Supervised(Protocol):
    """What a supervisor looks at."""

    name: str

    def report(self, now: float) -> LoopReport: ...

    def fault(self, now: float) -> str | None:
        """Why a restart of the process is needed; None if it is not."""


class SupervisedThread(threading.Thread):
    """Runs `body` until that returns, which it does when it was asked to end.

    The body marks with `works` and `rests` when it has something in hand, and when that is done. It must answer for
    what is in hand before it raises, or when it is called again.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        name: str,
        body: Callable[[SupervisedThread], None],
        *,
        attempts: int | None = None,
        longest_wait: float = LONGEST_WAIT,
        patience: float | None = None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
        daemon: bool = False,
    ) -> None:
        """`attempts`: failures in a row after which the thread is given up, and `on_failure` is called on it; it is
        never given up if that is None. `patience`: seconds that one thing in hand may take; None for what waits for a
        storage or an operator, which has limits of its own.
        """
        super().__init__(name=name, daemon=daemon)
        self._supervisor = supervisor
        self._body = body
        self._attempts = attempts
        self._longest_wait = longest_wait
        self._patience = patience
        self._on_failure = on_failure
        self._asked_to_end = threading.Event()
        self._state: ThreadState = "running"
        self._in_hand_since: float | None = None
        self._failures = 0
        """In a row."""
        self._exceptions = 0
        self._restarts = 0
        self._problem: str | None = None

    def start(self) -> None:
        """Begins, and is known to the supervisor from now on."""
        self._supervisor.add(self)
        try:
            super().start()
        except BaseException:
            self._supervisor.remove(self)
            raise

    def ask_to_end(self) -> None:
        """A body that is begun again is begun once more at once; it has its own way to hear that it shall end.

        To be called before it is told so: a body that ends when nobody has asked it to has failed.
        """
        self._asked_to_end.set()

    def works(self) -> None:
        """The thread has something in hand from now on, or has got on with it."""
        self._in_hand_since = self._supervisor.clock()

    def rests(self) -> None:
        """What was in hand is done."""
        self._in_hand_since = None
        self._failures = 0

    def count(self, error: BaseException) -> None:
        """The body has met a defect and goes on by itself, which it has logged."""
        self._exceptions += 1
        self._problem = type(error).__name__

    def fail(self, error: BaseException) -> None:
        """The body cannot go on and will raise this; it shows from now on, though there are things left to do."""
        self._state = "failed"
        self.count(error)
        logger.critical("the thread %s has failed", self.name, exc_info=error)

    @property
    def state(self) -> ThreadState:
        return "ended" if self._state == "running" and not self.is_alive() else self._state

    @property
    def failure(self) -> str | None:
        """Why nothing gets done: it has ended, or fails again and again. None while it runs."""
        # PERF: The engine thread asks this of all threads of L2 after each batch of requests.
        if self._state == "running" and self._failures < 2 and self.is_alive():
            return None
        state = self.state
        if state in ("failed", "ended"):
            return "the thread has ended" + (f": {self._problem}" if state == "failed" else "")
        if self._failures > 1:
            return f"the thread has ended, and is begun again: {self._problem}"
        return None

    def fault(self, now: float) -> str | None:
        """Why a restart of the process is needed. A thread that is begun again may get over what it met."""
        if self.state in ("failed", "ended"):
            return self.failure
        age = self.age(now)
        is_stuck = self._patience is not None and age > self._patience
        return f"nothing has moved for {age:.1f} seconds" if is_stuck else None

    def age(self, now: float) -> float:
        """For how many seconds it has had the same thing in hand; 0 while it has nothing."""
        since = self._in_hand_since
        return 0.0 if since is None else max(0.0, now - since)

    def report(self, now: float) -> LoopReport:
        return LoopReport(self.name, self.age(now), self._restarts, self._exceptions, self.state, self._problem)

    def run(self) -> None:
        """The thread itself."""
        while not self._attempt():
            self._asked_to_end.wait(min(FIRST_WAIT * 2 ** (self._failures - 1), self._longest_wait))
            self._restarts += 1
            self._state = "running"

    def _attempt(self) -> bool:
        """Calls the body; returns True if that was the last time."""
        is_last = self._asked_to_end.is_set()
        try:
            self._body(self)
        except BaseException as error:
            self._in_hand_since = None
            return self._has_raised(error, is_last=is_last)
        self._state = "ended"
        if self._asked_to_end.is_set():
            self._supervisor.remove(self)
        else:
            logger.critical("the thread %s has ended, though nobody has asked it to", self.name)
        return True

    def _has_raised(self, error: BaseException, *, is_last: bool) -> bool:
        self._failures += 1
        if self._attempts is not None and (is_last or self._failures >= self._attempts):
            if self._state != "failed":
                self.fail(error)
            self._on_failure(error)
            return True
        if is_last:
            logger.error("a defect: the thread %s has ended early", self.name, exc_info=error)
            self._supervisor.remove(self)
            return True
        self._state = "restarting"
        self.count(error)
        logger.error("a defect: the thread %s is begun again", self.name, exc_info=error)
        return False


class SupervisedJob:
    """Something that another thread does from time to time. All but `report` and `fault` are that thread's."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self._done = now
        self._failures = 0
        """In a row."""
        self._exceptions = 0
        self._problem: str | None = None

    def succeeded(self, now: float) -> None:
        self._done, self._failures = now, 0

    def failed(self, error: Exception) -> None:
        self._failures += 1
        self._exceptions += 1
        self._problem = type(error).__name__
        logger.error("a defect: %s has failed and is tried again", self.name, exc_info=error)

    def fault(self, now: float) -> str | None:
        if self._failures < FAILURES_TO_TELL:
            return None
        return f"it has failed {self._failures} times in a row: {self._problem}"

    def report(self, now: float) -> LoopReport:
        state: ThreadState = "failed" if self.fault(now) else "restarting" if self._failures else "running"
        return LoopReport(self.name, max(0.0, now - self._done), 0, self._exceptions, state, self._problem)


class Supervisor:
    """Knows all threads and periodic jobs that there are. May be used from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock: Final = clock
        self._changing = threading.Lock()
        self._known: Mapping[str, Supervised] = {}
        """By name. Replaced as a whole."""

    def job(self, name: str) -> SupervisedJob:
        """A new job, known from now on."""
        job = SupervisedJob(name, self.clock())
        self.add(job)
        return job

    def add(self, one: Supervised) -> None:
        """Another one of this name is forgotten."""
        with self._changing:
            self._known = {**self._known, one.name: one}

    def remove(self, one: Supervised) -> None:
        with self._changing:
            self._known = {name: each for name, each in self._known.items() if each is not one}

    def reports(self) -> tuple[LoopReport, ...]:
        """How each does; the first that was begun is the first."""
        now = self.clock()
        return tuple(each.report(now) for each in self._known.values())

    def faults(self) -> dict[str, str]:
        """By name, why a restart of the process is needed."""
        now = self.clock()
        found = {name: each.fault(now) for name, each in self._known.items()}
        return {name: fault for name, fault in found.items() if fault}
