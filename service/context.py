"""What resources are given: the engine, once there is one, and the one way to say that there is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import falcon

from engine import (
    AdvisorReport,
    Command,
    EngineError,
    JobReport,
    LookReport,
    MonitorReport,
    PinReport,
    Question,
    RecordingReport,
    StatusReport,
    TierReport,
)
from service.access import AccessControl
from service.configuration import Configuration
from service.document import Document
from service.errors import UnavailableError, engine_status
from service.http_metrics import HttpMetrics
from service.lifecycle import NOT_INITIALIZED, Lifecycle
from service.live import defaults
from service.logs import Logs

# The engine thread answers a command between two batches of requests; far longer than that means it is stuck.
ANSWER_TIMEOUT = 10.0

JsonObject = dict[str, Any]
A = TypeVar("A")
Refusal = Callable[[str], JsonObject]
"""An operation's body for a reason why the engine cannot answer."""


class Tier(Protocol):
    """The part of a tier of L2 that resources use."""

    def report(self) -> TierReport:
        """What it has done until now. Never raises."""

    def clear(self) -> None:
        """Begins to delete everything in it. Raises TierError."""

    def rescan(self) -> None:
        """Begins to count what is in it. Raises TierError."""

    def scrub(self) -> None:
        """Begins to check what is in it. Raises TierError."""


class Engine(Protocol):
    """The part of the running engine that resources use."""

    def status(self) -> StatusReport:
        """The newest report. Raises EngineStoppedError."""

    def checks(self) -> MonitorReport:
        """Every check and every loop. Never raises."""

    def ask(self, command: Command[A], timeout: float) -> A:
        """Has a command carried out between two requests. Raises EngineTimeoutError, EngineStoppedError."""

    def advice(self) -> AdvisorReport:
        """What another L1 would do. Never raises."""

    def recording(self) -> RecordingReport:
        """What the recorder does. Never raises."""

    def record(self, enabled: bool) -> None:
        """Begins or ends a recording. Raises RecordingError, EngineTimeoutError."""

    def look(self, question: Question, timeout: float) -> LookReport:
        """What a lookup would find now. Raises AmbiguousError, EngineTimeoutError, EngineStoppedError."""

    def pin(self, question: Question, ttl: float, timeout: float) -> PinReport:
        """Keeps a prompt's chunks in L1. Raises PinError, EngineTimeoutError, EngineStoppedError."""

    def prefetch(self, question: Question, timeout: float) -> JobReport:
        """Begins to load what L2 has of a prompt. Raises PrefetchError, AmbiguousError, and as `ask` does."""

    def tier(self, name: str) -> Tier:
        """A tier of L2. Raises TierError if there is none of that name."""

    def pause_tier(self, name: str, paused: bool, timeout: float) -> None:
        """Lets nothing be asked of a tier, or lets it be asked again. Raises TierError, and as `ask` does."""

    def clear_tiers(self) -> None:
        """Begins to delete everything in L2. Raises TierError, and then some tiers may have begun."""

    def find_in_tiers(self, rows: Sequence[tuple[bytes, ...]], timeout: float) -> int:
        """How many of these chunks, in order, L2 has with all of their objects. Never raises."""

    def delete_in_tiers(self, keys: Sequence[bytes], timeout: float) -> int:
        """Deletes these objects in L2; returns how many there were. Raises TierError."""


@dataclass(frozen=True, slots=True)
class Context:
    """Handed to every module's `routes`."""

    engine: Callable[[], Engine | None]
    """The engine, or None before it is ready and once it is being stopped."""
    document: Document
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    access: AccessControl = field(default_factory=AccessControl)
    """Who may do what."""
    logs: Logs = field(default_factory=Logs)
    config: Configuration = field(default_factory=defaults)
    """The settings in force; every setting at its default, and no file to read again, where nobody says otherwise."""
    http_metrics: HttpMetrics = field(default_factory=HttpMetrics)
    """Counts what this API is asked."""

    @contextmanager
    def running_engine(self, refusal: Refusal) -> Iterator[Engine]:
        """The engine for the length of a block; what keeps it from answering becomes the operation's own refusal."""
        engine = self.engine()
        if engine is None:
            raise refused(503, refusal(self._reason()))
        try:
            yield engine
        except EngineError as error:
            raise refused(engine_status(error), refusal(str(error))) from error

    @contextmanager
    def running(self) -> Iterator[Engine]:
        """The same, where what keeps the engine from answering becomes a problem."""
        engine = self.engine()
        if engine is None:
            raise UnavailableError(self._reason())
        try:
            yield engine
        except EngineError as error:
            raise falcon.HTTPError(engine_status(error), description=str(error)) from error

    def _reason(self) -> str:
        return self.lifecycle.state.reason or NOT_INITIALIZED


def refused(status: int, body: JsonObject) -> falcon.HTTPStatus:
    """An answer other than the good one, in the shape that the operation documents."""
    return falcon.HTTPStatus(status, text=json.dumps(body))
