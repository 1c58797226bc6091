"""Reloads the configuration when its file has changed, and when SIGHUP asks for it.

Guarantees: one thread does both, so the main thread stays free to stop the process; `hang_up` may be called in a signal
handler; the same state of the file is read once, whatever came of it.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Final

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

    def __init__(self, config: Configuration, interval: float = INTERVAL) -> None:
        self._config = config
        self._interval = interval
        # NOTE: A SimpleQueue, since a signal handler puts into it. True asks for a reload, False for the end.
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._settling = Settling(config.seen)
        self._owed: Trigger | None = None
        self._thread = threading.Thread(target=self._run, name="config-watch")

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def hang_up(self) -> None:
        """Asks for a reload, and returns at once."""
        self._calls.put(True)

    def stop(self) -> None:
        """Ends the thread after the reload that it may be in; waits for that with a time limit."""
        self._calls.put(False)
        self._thread.join(STOP_GRACE)

    def problem(self) -> str | None:
        """Why nobody looks at the file any more; None while the thread runs."""
        return None if self._thread.is_alive() else "the thread has ended"

    def _run(self) -> None:
        while (call := self._next_call()) is not False:
            try:
                self._look(is_asked=call is True)
            # NOTE: What goes wrong with one state of the file must not end the watch for the next.
            except Exception:
                log.exception("the configuration could not be reloaded")

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
