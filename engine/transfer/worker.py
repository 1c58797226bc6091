"""The transfer thread: the only one that touches a device or another process's memory.

It takes what the engine wants done in order, one after the other, and answers each with one event. So what is unmapped
is unmapped after the copies that were asked for before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Protocol

from engine.events import Copy, CopyEnded, Discard, Discarded, Event, Map, MapEnded, TransfersEnded, Unmap, UnmapEnded
from engine.layouts import KVLayout

logger = logging.getLogger(__name__)

Task = Copy | Map | Unmap | Discard


class Copier(Protocol):
    """Moves bytes. All of it is called on the transfer thread."""

    def prepare_thread(self) -> None: ...

    def map(self, mapping_id: int, layout: KVLayout) -> None: ...

    def unmap(self, mapping_id: int) -> None: ...

    def copy(self, job: Copy) -> None: ...


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
    ) -> None:
        """`discard` gives the memory of a range of the arena back: start and end in bytes."""
        self._copier = copier
        self._discard = discard
        self._post = post
        self._clock = clock
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._stopping = False
        self._thread: Final = threading.Thread(target=self._run, name="transfer")

    def start(self) -> None:
        self._thread.start()

    def submit(self, task: Task) -> None:
        self._tasks.put(task)

    def stop(self) -> None:
        """Finishes the task at hand, drops the others and ends the thread."""
        self._stopping = True
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._copier.prepare_thread()
            while (task := self._tasks.get()) is not None and not self._stopping:
                self._post(self._perform(task))
        except BaseException as error:
            logger.exception("the transfer thread has ended")
            self._post(TransfersEnded(self._clock(), f"the transfer thread has ended: {error!r}"))

    def _perform(self, task: Task) -> Event:
        match task:
            case Copy():
                problem = self._attempt(lambda: self._copier.copy(task), "copy")
                return CopyEnded(self._clock(), task.job_id, problem)
            case Map():
                problem = self._attempt(lambda: self._copier.map(task.mapping_id, task.layout), "map")
                return MapEnded(self._clock(), task.mapping_id, problem)
            case Unmap():
                self._attempt(lambda: self._copier.unmap(task.mapping_id), "unmap")
                return UnmapEnded(self._clock(), task.mapping_id)
            case Discard():
                problem = self._attempt(lambda: self._discard(task.start, task.end), "discard")
                return Discarded(self._clock(), problem)

    @staticmethod
    def _attempt(action: Callable[[], None], name: str) -> str | None:
        """Whatever goes wrong with one task is that task's failure, and no reason to stop serving the others."""
        try:
            action()
        except Exception as error:
            logger.warning("%s failed: %s", name, error, exc_info=not str(error))
            return str(error) or repr(error)
        return None
