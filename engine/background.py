"""A thread that does a little work again and again, beside the engine thread and never in its way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from engine.supervision import SupervisedThread, Supervisor

_STOP_SECONDS: Final = 5.0


class Background:
    """`start`, `wake` and `stop` may be called from any thread."""

    def __init__(
        self,
        name: str,
        work: Callable[[], float],
        end: Callable[[], None] = lambda: None,
        *,
        supervisor: Supervisor | None = None,
        patience: float | None = None,
    ) -> None:
        """`work` does a part and returns the seconds to rest after it; `end` is called once, behind all of them.

        Both run on the thread. When `work` raises, it is called again after a while.
        """
        self.name: Final = name
        self._work = work
        self._end = end
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = SupervisedThread(supervisor or Supervisor(), name, self._run, patience=patience)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Ends the present rest."""
        self._wake.set()

    def stop(self) -> bool:
        """Ends the thread after the part at hand; False if that does not end."""
        self._thread.ask_to_end()
        self._is_stopping = True
        self._wake.set()
        self._thread.join(_STOP_SECONDS)
        return not self._thread.is_alive()

    def _run(self, thread: SupervisedThread) -> None:
        while not self._is_stopping:
            thread.works()
            rest = self._work()
            thread.rests()
            self._wake.wait(rest)
            self._wake.clear()
        self._end()
