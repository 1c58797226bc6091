"""The threads of one tier: they ask its adapter, within limits, and recover by themselves.

Guarantees: what is given to a tier is answered once, in bounded time as long as the adapter keeps its own limits; no
thread outside ever waits for the storage; after an answer nobody touches the slot; a storage that failed is asked again
from time to time, and used again when it answers, whatever happened.
"""

from __future__ import annotations

import logging
import mmap
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, TypeVar

from engine.errors import TierError
from engine.events import Event, Find, Load, TierCleared, TierEffect
from engine.l2.base import DeniedError, FullError, L2Adapter, L2Error, UnavailableError, Usage
from engine.l2.breaker import Breaker
from engine.l2.envelope import HEADER_BYTES
from engine.l2.metering import Metering
from engine.l2.objects import Bench, FindTask, LoadTask, Quarantine, SaveTask, object_name
from engine.l2.scrubber import Scrubber
from engine.l2.tasks import STALE_SECONDS, Call, Lane, Probe, Task
from engine.settings import L2Settings
from engine.status import ScrubHold, ScrubReport, TierOutcome, TierReport, TierState
from engine.supervision import SupervisedThread, Supervisor

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_WAITING: Final = 65_536
"""Loads, or saves, that wait for a thread: twice what a prompt of a million tokens on eight shards may want at once."""
_ATTEMPTS: Final = 3
_BACKOFF_SECONDS: Final = 0.05
_RETRY_WITHIN: Final = 2.0
"""Age of a task in seconds up to which it is tried again."""
_LOOK_SECONDS: Final = 2.0
"""Between two looks at how much is stored."""
_FIRST_OPEN_WAIT: Final = 0.2
_LONGEST_OPEN_WAIT: Final = 10.0
_BATCH: Final = 256
"""Objects that a clear deletes at once."""
_STUCK_SECONDS: Final = 60.0
"""In one call of the adapter, which should have ended it long ago."""


class Side:
    """The threads that load, or those that save: their tasks, and whether the storage answers them.

    Reading and writing fail apart: a storage that became read-only is still good to load from.
    """

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.lane: Final = Lane(_MOST_WAITING)
        self.problem: str | None = None
        """The newest failure since the last success."""
        self.working = 0
        """Tasks with a thread now."""
        self._breaker = Breaker()
        self._lock = threading.Lock()

    @property
    def is_failing(self) -> bool:
        return self._breaker.is_open

    def blocks(self, now: float) -> bool:
        """Whether a task would be given up at once."""
        with self._lock:
            return self._breaker.blocks(now)

    def begin(self, now: float) -> bool:
        """Whether a call may be made; it ends in `succeeded` or `failed`."""
        with self._lock:
            return self._breaker.begin(now)

    def succeeded(self) -> None:
        with self._lock:
            if self._breaker.is_open:
                logger.info("L2 %s: the storage answers again", self.name)
            self._breaker.succeeded()
            self.problem = None

    def failed(self, now: float, problem: str) -> None:
        with self._lock:
            was_open = self._breaker.is_open
            self._breaker.failed(now, random.random())
            self.problem = problem
            if self._breaker.is_open and not was_open:
                logger.warning("L2 %s: the storage is left alone for a while: %s", self.name, problem)

    def count(self, change: int) -> None:
        with self._lock:
            self.working += change


class L2Tier:
    """One tier. Every method may be called from any thread; those that say so wait for the storage."""

    def __init__(
        self,
        settings: L2Settings,
        adapter: L2Adapter,
        arena: memoryview,
        post: Callable[[Event], None],
        clock: Callable[[], float],
        supervisor: Supervisor | None = None,
    ) -> None:
        """`arena`: the bytes of L1, writable. `post` takes the answers, from the tier's threads."""
        self.settings = settings
        """Replaced when a reload changes what is no business of the threads, or can change while they run."""
        self.is_paused = False
        """An operator wants nothing to be asked of it. What the engine asks is the engine's business."""
        self._adapter = adapter
        self._arena = arena
        self._clock = clock
        self._metering = Metering()
        self._quarantine = Quarantine()
        self._bench = Bench(settings.name, arena, post, clock, self._metering, self._quarantine)
        self._reading = Side(f"{settings.name} (reading)")
        self._writing = Side(f"{settings.name} (writing)")
        self._opened = threading.Event()
        self._open_problem: str | None = "its storage was not reached yet"
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._usage: Usage | None = None
        self._cleared = float("-inf")
        self._work: str | None = None
        self._work_done = 0
        self._works: list[tuple[str, Callable[[L2Adapter], None]]] = []
        self._ordering = threading.Lock()
        """Held while an operator's work is taken on."""
        self._report: tuple[tuple[object, ...], TierReport] | None = None
        readers, writers = settings.threads, max(1, settings.threads // 2)
        self._headers = mmap.mmap(-1, HEADER_BYTES * (readers + writers))
        headers = memoryview(self._headers)
        self._scrubber = Scrubber(self._bench, lambda: self.settings.scrub, self._hold)
        self._supervisor = supervisor or Supervisor()
        self._stuck: list[str] = []
        """Threads that have been in one call for too long."""
        thread = partial(SupervisedThread, self._supervisor)
        self._threads = [
            thread(f"l2-{settings.name}-keeper", self._keep),
            thread(f"l2-{settings.name}-scrubber", partial(self._scrubber.run, adapter)),
        ]
        for index in range(readers + writers):
            side, kind = (self._reading, f"r{index}") if index < readers else (self._writing, f"w{index - readers}")
            header = headers[index * HEADER_BYTES : (index + 1) * HEADER_BYTES]
            self._threads.append(thread(f"l2-{settings.name}-{kind}", partial(self._serve, side, header, [])))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def await_open(self, timeout: float) -> str | None:
        """Waits until the storage was reached; returns why not, if it was not."""
        return None if self._opened.wait(timeout) else self._open_problem

    def submit(self, effect: TierEffect) -> None:
        """Has something done; never waits. What cannot be done now is answered at once."""
        now = self._clock()
        if isinstance(effect, Find):
            self._put(self._reading, FindTask(self._bench, effect, now), now, urgent=True)
        elif isinstance(effect, Load):
            self._put(self._reading, LoadTask(self._bench, effect, now), now)
        else:
            self._put(self._writing, SaveTask(self._bench, effect, now, lambda: self._cleared), now)

    def expire(self, now: float) -> None:
        """Gives up what has waited too long for a thread, and looks for threads that do not come back."""
        awake = self._supervisor.clock()
        self._stuck = [thread.name for thread in self._threads[1:] if thread.age(awake) > _STUCK_SECONDS]
        for side in (self._reading, self._writing):
            for task in side.lane.drop(now - STALE_SECONDS):
                task.give_up("late")

    def find(self, keys: Sequence[bytes]) -> Future[tuple[bool, ...]]:
        """Which objects are there; the future may hold TierError."""
        names = [object_name(key) for key in keys]
        return self._call(self._reading, lambda adapter: self._bench.present(adapter, names))

    def delete(self, keys: Sequence[bytes]) -> Future[int]:
        """Deletes objects; the future holds how many there were, or TierError."""
        names = [object_name(key) for key in keys]

        def delete(adapter: L2Adapter) -> int:
            present = adapter.contains(names)
            adapter.delete(names)
            self._quarantine.remove(names)
            return sum(present)

        return self._call(self._writing, delete)

    def clear(self) -> None:
        """Begins to delete everything, whoever has stored it. What is being saved now does not appear any more.

        Raises TierError while an operator's other work is under way.
        """
        self._begin_work("clear", self._clear)

    def rescan(self) -> None:
        """Begins to count what is stored. Raises TierError while an operator's other work is under way."""
        self._begin_work("rescan", self._rescan)

    def scrub(self) -> None:
        """Begins to check everything that is stored. Raises TierError while that is under way."""
        self._check_open()
        self._scrubber.begin()

    def problem(self) -> str | None:
        """Why the tier does not work as it should; None if it does."""
        if not self._opened.is_set():
            return self._open_problem
        idle = [thread.name for thread in self._threads if thread.failure]
        if idle and not self._stop.is_set():
            return f"threads have ended: {', '.join(idle)}"
        if self._stuck:
            return f"threads do not come back from the storage: {', '.join(self._stuck)}"
        failing = [f"{side.name}: {side.problem}" for side in (self._reading, self._writing) if side.is_failing]
        return "; ".join(failing) or None

    def report(self) -> TierReport:
        """What it has done; the same object for as long as nothing has changed."""
        problem = self.problem()
        reading, writing = self._reading, self._writing
        waiting = (len(reading.lane) + reading.working, len(writing.lane) + writing.working)
        state, scrub = self._state(problem), self._scrubber.report()
        seen = (state, problem, waiting, self._metering.version, self._usage, self._work, self._work_done, scrub)
        if self._report is None or self._report[0] != seen:
            with self._metering.lock:
                self._report = (seen, self._new_report(state, problem, scrub, *waiting))
        return self._report[1]

    def stop(self, timeout: float) -> list[str]:
        """Ends the threads; returns the names of those that do not end in so many seconds."""
        for thread in self._threads:
            thread.ask_to_end()
        self._stop.set()
        self._wake.set()
        self._scrubber.stop()
        for side in (self._reading, self._writing):
            for task in side.lane.close():
                task.give_up("unavailable")
        deadline = self._clock() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - self._clock()))
        return [thread.name for thread in self._threads if thread.is_alive()]

    # The queue

    def _put(self, side: Side, task: Task, now: float, *, urgent: bool = False) -> None:
        if not self._opened.is_set() or side.blocks(now):
            task.give_up("unavailable")
        elif not side.lane.put(task, urgent=urgent):
            task.give_up("busy")

    def _call(self, side: Side, action: Callable[[L2Adapter], T]) -> Future[T]:
        now = self._clock()
        call = Call(now, action)
        self._put(side, call, now, urgent=True)
        return call.answer

    # The threads that load and save

    def _serve(self, side: Side, header: memoryview, in_hand: list[Task], thread: SupervisedThread) -> None:
        """`in_hand` is this thread's, and outlives what ends this call."""
        self._put_down(in_hand)
        while (task := side.lane.take()) is not None:
            in_hand.append(task)
            side.count(1)
            thread.works()
            try:
                self._carry_out(side, task, header, thread)
            finally:
                side.count(-1)
                self._put_down(in_hand)
            thread.rests()

    @staticmethod
    def _put_down(in_hand: list[Task]) -> None:
        """Whatever it was that ended the work on a task, who waits is told."""
        while in_hand:
            if not in_hand[-1].is_answered:
                in_hand[-1].give_up("refused")
            in_hand.pop()

    def _carry_out(self, side: Side, task: Task, header: memoryview, thread: SupervisedThread) -> None:
        for attempt in range(_ATTEMPTS):
            if not side.begin(self._clock()):
                task.give_up("unavailable")
                return
            outcome = self._try(side, task, header, thread)
            if outcome is None or task.is_answered:
                return
            is_young = self._clock() - task.since < _RETRY_WITHIN
            if outcome != "unavailable" or attempt + 1 == _ATTEMPTS or not is_young or self._stop.is_set():
                task.give_up(outcome)
                return
            self._metering.retried()
            self._stop.wait(_BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1))

    def _try(self, side: Side, task: Task, header: memoryview, thread: SupervisedThread) -> TierOutcome | None:
        """Why it was not done; None if it was. Raises what is no Exception: some client libraries panic with that."""
        try:
            task.perform(self._adapter, header)
        except FullError:
            # NOTE: It answers, and has room again when something goes; to leave it alone would help nobody.
            side.succeeded()
            return "full"
        except L2Error as error:
            side.failed(self._clock(), str(error))
            return _outcome(error)
        except BaseException as error:
            side.failed(self._clock(), f"a defect: {type(error).__name__}")
            if not isinstance(error, Exception):
                raise
            logger.exception("a defect: L2 %s could not do %s", side.name, type(task).__name__)
            thread.count(error)
            return "refused"
        side.succeeded()
        return None

    # The keeper: reaches the storage, looks at it from time to time, and does what operators want

    def _keep(self, thread: SupervisedThread) -> None:
        if not self._opened.is_set():
            self._open(thread)
        while not self._stop.is_set():
            thread.works()
            self._look(thread)
            while self._works and not self._stop.is_set():
                self._do_work(thread)
            thread.rests()
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
        # NOTE: The others may still be with the adapter: it is closed behind the last of them.
        for thread in self._threads[1:]:
            thread.join()
        self._adapter.close()

    def _open(self, thread: SupervisedThread) -> None:
        wait = _FIRST_OPEN_WAIT
        while not self._stop.is_set():
            try:
                self._adapter.open([self._arena, memoryview(self._headers), self._scrubber.memory])
            except Exception as error:
                if str(error) != self._open_problem:
                    logger.warning("L2 %s cannot be opened: %s", self.settings.name, error or repr(error))
                self._open_problem = str(error) or repr(error)
                _count_defect(error, thread)
                self._stop.wait(wait * random.uniform(0.5, 1))
                wait = min(2 * wait, _LONGEST_OPEN_WAIT)
            else:
                self._opened.set()
                self._open_problem = None
                logger.info("L2 %s is open", self.settings.name)
                return

    def _look(self, thread: SupervisedThread) -> None:
        """Asks what is stored, and whether a storage that failed can be used again, though nobody wants anything."""
        for side, writes in ((self._reading, False), (self._writing, True)):
            if side.is_failing and not side.blocks(self._clock()):
                side.lane.put(Probe(self._clock(), writes=writes), urgent=True)
        try:
            self._usage = self._adapter.used() or self._usage
        except L2Error as error:
            logger.debug("L2 %s does not tell what is stored: %s", self.settings.name, error)
        except Exception as error:
            thread.count(error)
            logger.exception("a defect: L2 %s could not tell what is stored", self.settings.name)

    def _hold(self) -> ScrubHold | None:
        """Why a scrub may not read anything now."""
        if self.is_paused:
            return "pause"
        if not self._opened.is_set() or self._reading.is_failing:
            return "storage"
        return "loads" if len(self._reading.lane) else None

    def _check_open(self) -> None:
        """Raises TierError."""
        if not self._opened.is_set():
            raise TierError(f"the tier {self.settings.name} is not open: {self._open_problem}")

    def _begin_work(self, name: str, action: Callable[[L2Adapter], None]) -> None:
        self._check_open()
        with self._ordering:
            if self._work is not None:
                raise TierError(f"the tier {self.settings.name} is busy with a {self._work}; wait until that has ended")
            self._work, self._work_done = name, 0
            self._works.append((name, action))
        self._wake.set()

    def _do_work(self, thread: SupervisedThread) -> None:
        name, action = self._works[0]
        try:
            action(self._adapter)
        except L2Error as error:
            done = self._work_done
            logger.warning("L2 %s: the %s ended early, after %d objects: %s", self.settings.name, name, done, error)
        except Exception as error:
            thread.count(error)
            logger.exception("a defect: the %s of L2 %s ended early", name, self.settings.name)
        finally:
            self._works.pop(0)
            self._work = None

    def _clear(self, adapter: L2Adapter) -> None:
        # NOTE: Before the first look: whoever writes something behind it finds that out, and deletes it again.
        self._cleared = self._clock()
        self._bench.post(TierCleared(self._cleared, self.settings.name))
        batch: list[str] = []
        for stored in adapter.scan():
            batch.append(stored.name)
            if len(batch) == _BATCH:
                self._delete(adapter, batch)
                batch = []
            if self._stop.is_set():
                return
        self._delete(adapter, batch)
        self._usage = adapter.used()

    def _delete(self, adapter: L2Adapter, names: list[str]) -> None:
        adapter.delete(names)
        self._quarantine.remove(names)
        self._work_done += len(names)

    def _rescan(self, adapter: L2Adapter) -> None:
        size = 0
        for stored in adapter.scan():
            size += stored.size
            self._work_done += 1
            if self._stop.is_set():
                return
        self._usage = adapter.used() or Usage(self._work_done, size)

    def _new_report(
        self, state: TierState, problem: str | None, scrub: ScrubReport, waiting_loads: int, waiting_saves: int
    ) -> TierReport:
        metering, usage = self._metering, self._usage
        return TierReport(
            name=self.settings.name,
            state=state,
            problem=problem,
            used_objects=usage.objects if usage else None,
            used_bytes=usage.bytes if usage else None,
            waiting_loads=waiting_loads,
            waiting_saves=waiting_saves,
            found_objects=metering.found_objects,
            absent_objects=metering.absent_objects,
            loads=tuple(metering.outcomes["load"].items()),
            saves=tuple(metering.outcomes["save"].items()),
            loaded_bytes=metering.bytes["load"],
            saved_bytes=metering.bytes["save"],
            load_seconds=metering.seconds["load"].snapshot(),
            save_seconds=metering.seconds["save"].snapshot(),
            find_seconds=metering.seconds["find"].snapshot(),
            retries=metering.retries,
            work=self._work,
            work_done=self._work_done,
            scrub=scrub,
        )

    def _state(self, problem: str | None) -> TierState:
        if self._stop.is_set():
            return "closed"
        if not self._opened.is_set():
            return "opening"
        return "failing" if problem else "open"


def _count_defect(error: Exception, thread: SupervisedThread) -> None:
    """What is in the closed list of an adapter's errors is none."""
    if not isinstance(error, L2Error):
        thread.count(error)


def _outcome(error: L2Error) -> TierOutcome:
    if isinstance(error, DeniedError):
        return "refused"
    return "unavailable" if isinstance(error, UnavailableError) else "absent"
