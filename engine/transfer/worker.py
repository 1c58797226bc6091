"""The transfer thread: the only one that touches a device or another process's memory.

It takes what the engine wants done in order, one after the other, and answers each with one event. So what is unmapped
is unmapped after the copies that were asked for before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Protocol

from engine.checksum import CorruptError
from engine.events import (
    Checksum,
    Copy,
    CopyEnded,
    Discard,
    Discarded,
    Event,
    Map,
    MapEnded,
    Summed,
    TransfersEnded,
    Unmap,
    UnmapEnded,
)
from engine.layouts import KVLayout
from engine.logs import WarningBudget
from engine.supervision import SupervisedThread, Supervisor

logger = logging.getLogger(__name__)

_STOP_SECONDS: Final = 5.0
_DISCARD_BYTES: Final = 256 << 20
"""Given back at once: a twentieth of a second. What was asked for meanwhile comes before the rest."""


@dataclass(frozen=True, slots=True)
class Sentinel:
    """A task without work, which shows that the thread gets round to its tasks. The engine hears nothing of it."""

    done: Callable[[], None]
    """Called on the transfer thread; must not raise."""


Task = Copy | Map | Unmap | Discard | Checksum | Sentinel


class MappingLostError(Exception):
    """Memory of a worker that was mapped is not there any more; says which and why. Nothing can be copied any more."""


class Copier(Protocol):
    """Moves bytes. All of it is called on the transfer thread."""

    beats: int
    """Grows with each piece of work that is done; read by any thread."""

    def prepare_thread(self) -> None: ...

    def map(self, mapping_id: int, layout: KVLayout) -> None: ...

    def unmap(self, mapping_id: int, abandoned: bool) -> None: ...

    def copy(self, job: Copy) -> tuple[bytes, ...] | None:
        """Returns the checksums that a store wants. Raises CorruptError where it meets an object that is corrupt."""

    def checksum(self, offset: int, size: int) -> bytes:
        """Of a slot of the arena."""


class TransferWorker:
    """Runs a copier on a thread of its own.

    `submit` and `stop` may be called from any thread. Each task is answered through `post`, from the transfer thread;
    if that thread ends by itself, `TransfersEnded` is posted instead of the answers still owed.
    """

    def __init__(
        self,
        copier: Copier,
        discard: Callable[[int, int], None],
        post: Callable[[Event], None],
        clock: Callable[[], float],
        supervisor: Supervisor | None = None,
    ) -> None:
        """`discard` gives the memory of a range of the arena back: start and end in bytes."""
        self._copier = copier
        self._discard = discard
        self._post = post
        self._clock = clock
        self._warn = WarningBudget(logger, clock)
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._stopping = False
        self._done = 0
        self.ended: str | None = None
        """Why the thread has ended by itself; None if it has not. Read by any thread."""
        # NOTE: Not begun again: a copy or a mapping may be half done, and the engine is told that all have ended.
        self._thread: Final = SupervisedThread(
            supervisor or Supervisor(clock), "transfer", self._run, attempts=1, on_failure=self._failed
        )

    def start(self) -> None:
        self._thread.start()

    def submit(self, task: Task) -> None:
        self._tasks.put(task)

    @property
    def beats(self) -> int:
        """Grows with every task that is done, and with every piece of one that takes long. Read by any thread."""
        return self._done + self._copier.beats

    def stop(self) -> bool:
        """Finishes the task at hand, drops the others and ends the thread.

        False if the task at hand does not end: a device call that never returns cannot be called off. It is waited for
        at the first call only.
        """
        if not self._stopping:
            self._thread.ask_to_end()
            self._stopping = True
            self._tasks.put(None)
            self._thread.join(_STOP_SECONDS)
        return not self._thread.is_alive()

    def _run(self, thread: SupervisedThread) -> None:
        self._copier.prepare_thread()
        while (task := self._tasks.get()) is not None and not self._stopping:
            self._perform(task)
            self._done += 1

    def _failed(self, error: BaseException) -> None:
        self.ended = f"the transfer thread has ended: {error!r}"
        self._post(TransfersEnded(self._clock(), self.ended))

    def _perform(self, task: Task) -> None:
        if isinstance(task, Sentinel):
            task.done()
        elif (outcome := self._outcome(task)) is not None:
            self._post(outcome)

    def _outcome(self, task: Copy | Map | Unmap | Discard | Checksum) -> Event | None:
        """None if the task goes on later."""
        match task:
            case Copy():
                return self._copy(task)
            case Checksum():
                return self._sum_up(task)
            case Map():
                problem = self._attempt(lambda: self._copier.map(task.mapping_id, task.layout), "map")
                return MapEnded(self._clock(), task.mapping_id, problem)
            case Unmap():
                self._attempt(lambda: self._copier.unmap(task.mapping_id, task.abandoned), "unmap")
                return UnmapEnded(self._clock(), task.mapping_id)
            case Discard():
                return self._discard_piece(task)

    def _copy(self, task: Copy) -> CopyEnded:
        checksums: tuple[bytes, ...] | None = None
        corrupt: int | None = None

        def copy() -> None:
            nonlocal checksums, corrupt
            try:
                checksums = self._copier.copy(task)
            except CorruptError as error:
                corrupt = error.piece
                raise

        try:
            problem = self._attempt(copy, "copy")
        except MappingLostError as lost:
            return CopyEnded(self._clock(), task.job_id, str(lost), lost_mapping=task.mapping_id)
        return CopyEnded(self._clock(), task.job_id, problem, checksums or (), corrupt)

    def _sum_up(self, task: Checksum) -> Summed:
        checksums: list[bytes] = []
        problem = self._attempt(
            lambda: checksums.extend(self._copier.checksum(offset, size) for offset, size in task.slots), "checksum"
        )
        return Summed(self._clock(), task.ticket, None if problem else tuple(checksums))

    def _discard_piece(self, task: Discard) -> Event | None:
        end = min(task.start + _DISCARD_BYTES, task.end)
        problem = self._attempt(lambda: self._discard(task.start, end), "discard")
        if problem is None and end < task.end:
            self._tasks.put(Discard(end, task.end))
            return None
        return Discarded(self._clock(), problem)

    def _attempt(self, action: Callable[[], None], name: str) -> str | None:
        """Whatever goes wrong with one task is that task's failure, and no reason to stop serving the others.

        Raises MappingLostError, which is a failure of the tasks to come, too.
        """
        try:
            action()
        except MappingLostError:
            raise
        except Exception as error:
            self._warn(f"{name} failed: {error}", exc_info=not str(error))
            return str(error) or repr(error)
        return None
