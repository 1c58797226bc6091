"""A thread that does a little work again and again, beside the engine thread and never in its way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

_AFTER_DEFECT_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 5.0


class Background:
    """`start`, `stop` and `problem` may be called from any thread."""

    def __init__(self, name: str, work: Callable[[], float], end: Callable[[], None] = lambda: None) -> None:
        """`work` does a part and returns the seconds to rest after it; `end` is called once, behind all of them.

        Both run on the thread. What `work` raises is logged, and the thread goes on.
        """
        self.name: Final = name
        self._work = work
        self._end = end
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Ends the present rest."""
        self._wake.set()

    def stop(self) -> bool:
        """Ends the thread after the part at hand; False if that does not end."""
        self._is_stopping = True
        self._wake.set()
        self._thread.join(_STOP_SECONDS)
        return not self._thread.is_alive()

    def problem(self) -> str | None:
        """Why nothing is done any more; None while the thread runs."""
        return None if self._thread.is_alive() else "the thread has ended"

    def _run(self) -> None:
        while not self._is_stopping:
            self._wake.wait(self._attempt(self._work))
            self._wake.clear()
        self._attempt(self._end)

    def _attempt(self, action: Callable[[], float | None]) -> float | None:
        try:
            return action()
        except Exception:
            logger.exception("a defect: the thread %s goes on", self.name)
            return _AFTER_DEFECT_SECONDS
