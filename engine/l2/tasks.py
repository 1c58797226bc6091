"""What the threads of a tier are given to do, and the queues where it waits."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

from engine.errors import TierError
from engine.l2.base import L2Adapter
from engine.status import TierOutcome

STALE_SECONDS: Final = 30.0
"""Age at which what still waits is given up."""

_PROBE: Final = "probe"
"""Name of an object that is not there, or for a moment."""

T = TypeVar("T")


class Task(ABC):
    """One thing to do. Any thread may do it; who waits is told once, whatever happens."""

    def __init__(self, since: float) -> None:
        self.since: Final = since
        self.is_answered = False
        """Who waits was told. Set behind the telling, so that what could not be told is told by somebody else."""

    @abstractmethod
    def perform(self, adapter: L2Adapter, header: memoryview) -> None:
        """Does it and tells who waits. `header`: memory of the thread's own, for the header of an object.

        Raises L2Error, and then nobody was told anything; after a defect `is_answered` knows.
        """

    @abstractmethod
    def give_up(self, outcome: TierOutcome) -> None:
        """Tells who waits that it was not done."""


class Lane:
    """Tasks of one kind of threads: urgent ones first, the others in order. Safe for threads."""

    def __init__(self, limit: int) -> None:
        """`limit`: tasks that may wait, besides the urgent ones."""
        self._limit = limit
        self._urgent: deque[Task] = deque()
        self._tasks: deque[Task] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._urgent) + len(self._tasks)

    def put(self, task: Task, *, urgent: bool = False) -> bool:
        """False if there are too many already, or no more are taken."""
        with self._changed:
            if self._is_closed or (not urgent and len(self._tasks) >= self._limit):
                return False
            (self._urgent if urgent else self._tasks).append(task)
            self._changed.notify()
            return True

    def take(self) -> Task | None:
        """The next one, as soon as there is one; None when it is closed."""
        with self._changed:
            while not (self._urgent or self._tasks or self._is_closed):
                self._changed.wait()
            if self._is_closed:
                return None
            return (self._urgent or self._tasks).popleft()

    def drop(self, before: float) -> list[Task]:
        """Takes out what has waited since an earlier time."""
        with self._changed:
            old = [task for task in (*self._urgent, *self._tasks) if task.since < before]
            if old:
                self._urgent = deque(task for task in self._urgent if task.since >= before)
                self._tasks = deque(task for task in self._tasks if task.since >= before)
            return old

    def close(self) -> list[Task]:
        """Ends the threads that take from it; returns what was not taken."""
        with self._changed:
            self._is_closed = True
            left = [*self._urgent, *self._tasks]
            self._urgent.clear()
            self._tasks.clear()
            self._changed.notify_all()
            return left


class Call(Task, Generic[T]):
    """Something that a thread outside wants of the adapter."""

    def __init__(self, since: float, action: Callable[[L2Adapter], T]) -> None:
        super().__init__(since)
        self._action = action
        self.answer: Final = Future[T]()
        """What the action returns, or TierError."""

    def perform(self, adapter: L2Adapter, header: memoryview) -> None:
        self.answer.set_result(self._action(adapter))
        self.is_answered = True

    def give_up(self, outcome: TierOutcome) -> None:
        self.answer.set_exception(TierError(f"the storage did not do it: {outcome}"))
        self.is_answered = True


class Probe(Task):
    """Finds out whether a storage that failed can be used again. Nobody waits for it."""

    def __init__(self, since: float, *, writes: bool) -> None:
        super().__init__(since)
        self._writes = writes

    def perform(self, adapter: L2Adapter, header: memoryview) -> None:
        if self._writes:
            adapter.write(_PROBE, [header])
            adapter.delete([_PROBE])
        else:
            adapter.contains([_PROBE])
        self.is_answered = True

    def give_up(self, outcome: TierOutcome) -> None:
        """There will be another one."""
        self.is_answered = True
