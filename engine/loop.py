"""The engine thread: waits for requests and finished work, lets the engine decide, and does what it wants done."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from math import ceil
from typing import Any, Final

import zmq

from engine.commands import A, Command
from engine.core import Engine
from engine.errors import EngineError, EngineStoppedError
from engine.events import (
    CommandAsked,
    CommandDone,
    Continue,
    Continued,
    Copy,
    Discard,
    Due,
    Effect,
    Event,
    Find,
    Load,
    Map,
    Probe,
    Probed,
    Reply,
    RequestArrived,
    Save,
    Tick,
    TransfersEnded,
    Unmap,
    Warn,
)
from engine.histogram import Histogram
from engine.l2.group import TierGroup
from engine.meters import LOOKUP_BOUNDS
from engine.status import StatusReport
from engine.transfer.worker import TransferWorker
from engine.wire.codec import BY_MESSAGE
from engine.wire.messages import Lookup
from engine.wire.router import Incoming, Router

logger = logging.getLogger(__name__)

_BATCH: Final = 64
"""Messages handled before finished work is looked at again."""
_TICK_SECONDS: Final = 1.0
_LINGER_SECONDS: Final = 1.0


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
    ) -> None:
        self._engine = engine
        self._router = router
        self._mailbox = mailbox
        self._transfers = transfers
        self._tiers = tiers
        self._clock = clock
        self._stop = threading.Event()
        self._tickets = count()
        self._waiting: dict[int, Future[Any]] = {}
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

    def run(self) -> None:
        """Serves until `stop`; then ends the transfers, answers everybody who waits, and closes the socket."""
        poller = zmq.Poller()
        poller.register(self._router.socket, zmq.POLLIN)
        poller.register(self._mailbox.fd, zmq.POLLIN)
        try:
            while not self._stop.is_set():
                self._wait(poller)
                self._step()
            self._finish()
        finally:
            self._stop.set()
            self._transfers.stop()
            for future in list(self._waiting.values()):
                if future.set_running_or_notify_cancel():
                    future.set_exception(EngineStoppedError("the engine has ended"))
            self._router.close(_LINGER_SECONDS)

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
        for incoming in self._router.receive(_BATCH):
            self._serve(incoming, looked)
        now = self._clock()
        if now >= self._next_tick:
            self._next_tick = now + _TICK_SECONDS
            self._perform(self._engine.handle(Tick(now)))
            self._tiers.expire(now)
        if now >= self._engine.due:
            self._perform(self._engine.handle(Due(now)))
        self.published = (now, self._report())

    def _handle(self, event: Event) -> None:
        """A refused command is its asker's business, and so is a defect that one meets."""
        if not isinstance(event, CommandAsked):
            self._perform(self._engine.handle(event))
            return
        try:
            self._perform(self._engine.handle(event))
        except Exception as error:
            if not isinstance(error, EngineError):
                logger.exception("a defect: %s could not be carried out", type(event.command).__name__)
            future = self._waiting.pop(event.ticket, None)
            if future is not None and future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _serve(self, incoming: Incoming, looked: float) -> None:
        """A defect that one request meets must not take the other clients down with it."""
        now = self._clock()
        try:
            effects = self._engine.handle(RequestArrived(now, looked, incoming.to, incoming.message))
        except Exception:
            logger.exception("a defect: %s could not be handled", type(incoming.message).__name__)
            self._router.fail(incoming.to, BY_MESSAGE[type(incoming.message)], "internal error")
        else:
            self._perform(effects)
            if type(incoming.message) is Lookup:
                self._lookup_seconds.observe(self._clock() - now)

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Reply():
                    self._router.reply(effect.to, effect.value)
                case Copy() | Map() | Unmap() | Discard():
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

    def _report(self) -> StatusReport:
        router = self._router
        return self._engine.report(
            failed_requests=router.failed_requests,
            dropped_messages=router.dropped_messages,
            dropped_replies=router.dropped_replies,
            lookup_seconds=self._lookup_seconds.snapshot(),
            tiers=self._tiers.reports(),
        )
