"""The orderly end: nothing new begins, what runs may run out, then the engine stops. Main thread only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from engine import EngineError, EngineStuckError, Runtime, StatusReport

_POLL_SECONDS = 0.02
_COMMAND_SECONDS = 1.0

log = logging.getLogger("kvkeep")


def drain(engine: Runtime, timeout: float, is_hurried: Callable[[], bool]) -> None:
    """Returns when nothing is under way any more, the time is over, or somebody is in a hurry. Never raises."""
    deadline = time.monotonic() + timeout
    try:
        engine.drain(_COMMAND_SECONDS)
        while _is_busy(report := engine.status()) and time.monotonic() < deadline and not is_hurried():
            time.sleep(_POLL_SECONDS)
    except EngineError as error:
        log.warning("not drained: %s", error)
    else:
        log.info(
            "drained, %d transfers still run, %d objects are still to be saved to L2",
            report.running_transfers,
            report.running_saves,
        )


def _is_busy(report: StatusReport) -> bool:
    return bool(report.running_transfers or report.running_saves)


def stop(engine: Runtime) -> bool:
    """Stops the engine; False if it does not stop."""
    try:
        engine.stop()
    except EngineStuckError as error:
        log.critical("%s; the process ends without them, and clients that wait for them will miss the server", error)
        return False
    return True
