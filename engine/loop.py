"""The engine thread: waits for requests and finished work, lets the engine decide, and does what it wants done."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from math import ceil
from typing import Any, Final

import zmq

from engine.commands import A, Command
from engine.core import Engine
from engine.errors import EngineError, EngineStoppedError
from engine.events import (
    Checksum,
    CommandAsked,
    CommandDone,
    Continue,
    Continued,
    Copy,
    Discard,
    Due,
    Effect,
    Event,
    Failed,
    Find,
    Load,
    Map,
    Probe,
    Probed,
    Reply,
    ReplyTo,
    RequestArrived,
    Save,
    Tick,
    TransfersEnded,
    Unmap,
    Warn,
)
from engine.health import PERIODIC_JOBS
from engine.histogram import Histogram
from engine.l2.group import TierGroup
from engine.logs import WarningBudget
from engine.meters import LOOKUP_BOUNDS
from engine.status import StatusReport
from engine.supervision import Supervisor
from engine.transfer.worker import TransferWorker
from engine.wire.codec import BY_MESSAGE, Operation
from engine.wire.messages import Lookup, Ping, Retrieve, Store, UnregisterKVCache
from engine.wire.router import Incoming, Router

logger = logging.getLogger(__name__)

_BATCH: Final = 64
"""Messages handled before finished work is looked at again."""
_BATCH_SECONDS: Final = 0.05
"""The same, where messages are large."""
_TICK_SECONDS: Final = 1.0
_LINGER_SECONDS: Final = 1.0
_LAST_MESSAGES: Final = 10_000
"""That have arrived and are still answered when the thread ends."""
_FREES_BLOCKS: Final = frozenset({Store, Retrieve, UnregisterKVCache, Ping})
"""Once answered, these let a client use its blocks for something else."""


class Mailbox:
    """Events from other threads, and a file descriptor that is readable while there are any."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._lock = threading.Lock()
        self._closed = False
        self._is_awake = False
        """True exactly while the descriptor is readable, for whoever holds the lock."""
        self.fd: Final = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def post(self, event: Event) -> None:
        """May be called from any thread."""
        self._events.append(event)
        self.wake()

    def wake(self) -> None:
        """Makes the engine thread look; may be called from any thread, and does nothing once it is closed."""
        with self._lock:
            if not self._closed:
                self._is_awake = True
                os.eventfd_write(self.fd, 1)

    @property
    def is_awake(self) -> bool:
        """Whether somebody has woken it since the last `take`."""
        return self._is_awake

    def take(self) -> list[Event]:
        """All events so far. Engine thread only."""
        # PERF: Reading the descriptor gives the interpreter away; mostly there is nothing to be read.
        if not self._is_awake:
            return []
        with self._lock:
            self._is_awake = False
            os.eventfd_read(self.fd)
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self) -> None:
        """The number of the descriptor may belong to another file from now on, which is why `wake` holds a lock."""
        with self._lock:
            self._closed = True
            os.close(self.fd)


class EngineLoop:
    """Runs the engine. `run` is the engine thread; the other methods may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        router: Router,
        mailbox: Mailbox,
        transfers: TransferWorker,
        tiers: TierGroup,
        clock: Callable[[], float],
        supervisor: Supervisor | None = None,
        count: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        """`count` takes the defects that one request or command meets, after which the thread goes on."""
        self._engine = engine
        self._router = router
        self._mailbox = mailbox
        self._transfers = transfers
        self._tiers = tiers
        self._clock = clock
        self._defects = WarningBudget(logger, clock, logging.ERROR)
        self._stop = threading.Event()
        self._tickets = itertools.count()
        self._count = count
        self._waiting: dict[int, Future[Any]] = {}
        self._owed: dict[ReplyTo, Operation] = {}
        """Requests that were read and not answered yet. Kept outside the engine, for the day when that breaks."""
        supervisor = supervisor or Supervisor(clock)
        self._jobs = {name: supervisor.job(f"tick:{name}") for name in PERIODIC_JOBS}
        self._lookup_seconds = Histogram(LOOKUP_BOUNDS)
        self._looked = clock()
        self._next_tick = self._looked + _TICK_SECONDS
        self.published: tuple[float, StatusReport] = (self._looked, self._report())
        """When the newest report was made, and the report. Replaced as a whole by the engine thread."""

    def ask(self, command: Command[A]) -> Future[A]:
        """Has a command carried out; the future holds its answer, or what it raised."""
        ticket, future = next(self._tickets), Future[A]()
        self._waiting[ticket] = future
        self._mailbox.post(CommandAsked(self._clock(), ticket, command))
        if self._stop.is_set():
            future.cancel()
        return future

    def stop(self) -> None:
        """Asks the thread to end."""
        self._stop.set()
        self._mailbox.wake()

    def run(self, on_failure: Callable[[BaseException], None] = lambda error: None) -> None:
        """Serves until `stop`; then ends the transfers, answers everybody who waits, and closes the socket.

        What breaks it is raised at the end, but told at once: `on_failure` is called before anything else is done.
        """
        poller = zmq.Poller()
        poller.register(self._router.socket, zmq.POLLIN)
        poller.register(self._mailbox.fd, zmq.POLLIN)
        try:
            while not self._stop.is_set():
                self._wait(poller)
                self._step()
            self._finish()
        except BaseException as error:
            on_failure(error)
            raise
        finally:
            self._stop.set()
            self._leave()

    def _wait(self, poller: zmq.Poller) -> None:
        """Returns when there is something to do.

        What was waiting already may have come at any time since we looked last; what we had to wait for came just now.
        """
        if not (self._router.has_arrived or self._mailbox.is_awake):
            wake = min(self._next_tick, self._engine.due)
            # NOTE: Rounded up, or it would turn round at full speed for the last millisecond.
            poller.poll(max(0, ceil((wake - self._clock()) * 1000)))
            self._looked = self._clock()

    def _step(self) -> None:
        looked, self._looked = self._looked, self._clock()
        for event in self._mailbox.take():
            self._handle(event)
        until = self._looked + _BATCH_SECONDS
        for incoming in self._router.receive(_BATCH):
            self._serve(incoming, looked)
            if self._clock() > until:
                break
        now = self._clock()
        if now >= self._next_tick:
            self._next_tick = now + _TICK_SECONDS
            self._tick(now)
        if now >= self._engine.due:
            self._perform(self._engine.handle(Due(now)))
        self.published = (now, self._report())

    def _tick(self, now: float) -> None:
        effects = self._engine.handle(Tick(now))
        self._perform(effects)
        failed = {effect.job for effect in effects if isinstance(effect, Failed)}
        for name, job in self._jobs.items():
            if name not in failed:
                job.succeeded(now)
        self._tiers.expire(now)

    def _handle(self, event: Event) -> None:
        """A refused command is its asker's business, and so is a defect that one meets."""
        if not isinstance(event, CommandAsked):
            self._perform(self._engine.handle(event))
            return
        try:
            # NOTE: Requests were served since it was asked; with that time a worker would be silent for less than 0 s.
            self._perform(self._engine.handle(replace(event, now=self._clock())))
        except Exception as error:
            if not isinstance(error, EngineError):
                logger.exception("a defect: %s could not be carried out", type(event.command).__name__)
                self._count(error)
            future = self._waiting.pop(event.ticket, None)
            if future is not None and future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _serve(self, incoming: Incoming, looked: float) -> None:
        """A defect that one request meets must not take the other clients down with it."""
        now = self._clock()
        operation = self._owed[incoming.to] = BY_MESSAGE[type(incoming.message)]
        try:
            effects = self._engine.handle(RequestArrived(now, looked, incoming.to, incoming.message))
        except Exception as error:
            self._defects(f"a defect: {type(incoming.message).__name__} could not be handled", exc_info=True)
            self._count(error)
            del self._owed[incoming.to]
            self._router.fail(incoming.to, operation, "internal error")
        else:
            self._perform(effects)
            if type(incoming.message) is Lookup:
                self._lookup_seconds.observe(self._clock() - now)

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Reply():
                    self._router.reply(effect.to, effect.value)
                    self._owed.pop(effect.to, None)
                case Copy() | Map() | Unmap() | Discard() | Checksum():
                    self._transfers.submit(effect)
                case Find() | Load() | Save():
                    self._tiers.submit(effect)
                case CommandDone():
                    self._answer(effect)
                case Continue():
                    self._mailbox.post(Continued(self._clock()))
                case Probe():
                    connected = self._router.reaches(effect.client)
                    self._mailbox.post(Probed(self._clock(), effect.client, connected))
                case Warn():
                    self._router.warn(effect.text)
                case Failed():
                    self._jobs[effect.job].failed(effect.error)

    def _answer(self, done: CommandDone) -> None:
        future = self._waiting.pop(done.ticket)
        if future.set_running_or_notify_cancel():
            future.set_result(done.answer)

    def _finish(self) -> None:
        """A client has no time limit for some replies: nobody is left without one.

        Unless the transfer thread is stuck. It may still write into a client's blocks, and a client that is answered
        gives them to somebody else; it will miss the server instead, once the process has ended.
        """
        if not self._transfers.stop():
            return
        for event in self._mailbox.take():
            self._handle(event)
        self._perform(self._engine.handle(TransfersEnded(self._clock(), "the server is stopping")))

    def _leave(self) -> None:
        """Tells everybody who waits that nothing will come, also where the engine itself is broken."""
        copies_have_ended = self._transfers.stop()
        for future in list(self._waiting.values()):
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineStoppedError("the engine has ended"))
        try:
            self._refuse_the_rest(copies_have_ended)
        except Exception:
            logger.exception("not every client could be told that the engine has ended")
        self._router.close(_LINGER_SECONDS)

    def _refuse_the_rest(self, copies_have_ended: bool) -> None:
        for incoming in self._router.receive(_LAST_MESSAGES):
            self._owed[incoming.to] = BY_MESSAGE[type(incoming.message)]
        for to, operation in self._owed.items():
            # NOTE: As in `_finish`: a copy that goes on may write into blocks that its client would give away.
            if copies_have_ended or operation.message not in _FREES_BLOCKS:
                self._router.reply(to, operation.failure)

    def _report(self) -> StatusReport:
        router = self._router
        return self._engine.report(
            failed_requests=router.failed_requests,
            dropped_messages=router.dropped_messages,
            dropped_replies=router.dropped_replies,
            cut_connections=router.cut_connections,
            lookup_seconds=self._lookup_seconds.snapshot(),
            tiers=self._tiers.reports(),
        )
