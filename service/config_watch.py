"""Reloads the configuration when its file has changed, and when SIGHUP asks for it.

Guarantees: one thread does both, so the main thread stays free to stop the process; `hang_up` may be called in a signal
handler; the same state of the file is read once, whatever came of it.
"""

from __future__ import annotations

import logging
import queue
from typing import Final

from engine import SupervisedThread, Supervisor
from service.appliers import ApplyError
from service.configuration import Configuration, NoFileError, NotReadyError, ReloadRefusedError, Trigger
from service.file_state import Settling, file_state
from service.problems import ConfigError

INTERVAL: Final = 2.0
"""Seconds between two looks at the file."""

STOP_GRACE: Final = 5.0

log = logging.getLogger("kvkeep")


class ConfigWatch:
    """The thread `config-watch`."""

    def __init__(self, config: Configuration, interval: float = INTERVAL, supervisor: Supervisor | None = None) -> None:
        self._config = config
        self._interval = interval
        # NOTE: A SimpleQueue, since a signal handler puts into it. True asks for a reload, False for the end.
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._settling = Settling(config.seen)
        self._owed: Trigger | None = None
        self._thread = SupervisedThread(supervisor or Supervisor(), "config-watch", self._run)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def hang_up(self) -> None:
        """Asks for a reload, and returns at once."""
        self._calls.put(True)

    def stop(self) -> None:
        """Ends the thread after the reload that it may be in; waits for that with a time limit."""
        self._thread.ask_to_end()
        self._calls.put(False)
        self._thread.join(STOP_GRACE)

    def _run(self, thread: SupervisedThread) -> None:
        while (call := self._next_call()) is not False:
            thread.works()
            self._look(is_asked=call is True)
            thread.rests()

    def _next_call(self) -> bool | None:
        """None after an interval without a call."""
        try:
            return self._calls.get(timeout=self._interval)
        except queue.Empty:
            return None

    def _look(self, *, is_asked: bool) -> None:
        if self._settling.look(file_state(self._config.file), self._config.seen):
            self._owed = self._owed or "watch"
        if is_asked:
            self._owed = "signal"
        if self._owed is not None:
            owed, self._owed = self._owed, None
            self._reload(owed)

    def _reload(self, trigger: Trigger) -> None:
        try:
            self._config.reload(trigger, wait=True)
        except NotReadyError:
            # NOTE: Not forgotten: it is tried again at every look until there is an engine.
            self._owed = trigger
        except NoFileError as error:
            log.warning("SIGHUP has no effect: %s", error)
        except (ReloadRefusedError, ConfigError, ApplyError):
            # The configuration has logged it, and keeps it for getConfig and the metrics.
            return
