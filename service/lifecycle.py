"""Where the process is in its life, from the first answer to the last, and the engine while there is one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from engine import MonitorReport, Runtime
from service.allocation import COMPLETE, NOTHING_YET, Allocation

Phase = Literal["starting", "running", "failed", "stopping"]

NOT_INITIALIZED = "engine not initialized"
ENDED = "the engine has ended"
STOPPING = "the server is stopping"

_FAILURE_LENGTH = 1000
_NO_CHECKS = MonitorReport((), ())


@dataclass(frozen=True, slots=True)
class State:
    """One moment."""

    phase: Phase = "starting"
    reason: str = NOT_INITIALIZED
    """Why there is no engine to be used; empty while there is."""
    failure: str | None = None
    """What the engine failed of, in its initialisation or later: class and message, no stack."""
    l1: Allocation = NOTHING_YET
    """How far the allocation of L1 is."""
    engine: Runtime | None = None
    """Kept while it stops, for its checks."""

    def report(self) -> MonitorReport:
        """The engine's checks; none without an engine."""
        return self.engine.checks() if self.engine else _NO_CHECKS


class Lifecycle:
    """Written by the main thread, read by any thread: the state is one reference, replaced as a whole."""

    def __init__(self) -> None:
        self.state = State()

    def engine(self) -> Runtime | None:
        """The engine, if HTTP may use it now."""
        state = self.state
        return state.engine if state.phase == "running" else None

    def allocated(self, l1: Allocation) -> None:
        """The allocation of L1 is so far."""
        self.state = replace(self.state, l1=l1)

    def run(self, engine: Runtime) -> None:
        """From now on HTTP uses the engine."""
        self.state = State("running", "", None, COMPLETE, engine)

    def fail(self, error: BaseException) -> None:
        """The engine could not be initialised, or has ended by itself: only a restart helps."""
        reason = ENDED if self.state.engine else NOT_INITIALIZED
        failure = f"{type(error).__name__}: {error}"[:_FAILURE_LENGTH]
        self.state = replace(self.state, phase="failed", reason=reason, failure=failure)

    def stop(self) -> None:
        """From now on HTTP answers that the server stops."""
        self.state = replace(self.state, phase="stopping", reason=STOPPING)
