"""What resources are given: the engine, once there is one, and the one way to say that there is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import falcon

from engine import Cleared, EngineError, StatusReport
from service.document import Document
from service.errors import engine_status
from service.http_metrics import HttpMetrics

NOT_INITIALIZED = "engine not initialized"

JsonObject = dict[str, Any]
Refusal = Callable[[str], JsonObject]
"""An operation's body for a reason why the engine cannot answer."""


class Engine(Protocol):
    """The part of the running engine that resources use."""

    def status(self) -> StatusReport:
        """The newest report. Raises EngineStoppedError."""

    def clear(self, timeout: float) -> Cleared:
        """Makes everything in L1 invisible. Raises EngineTimeoutError, EngineStoppedError."""


@dataclass(frozen=True, slots=True)
class Context:
    """Handed to every module's `routes`."""

    engine: Callable[[], Engine | None]
    """The engine, or None before it is ready and once it is being stopped."""
    document: Document
    http_metrics: HttpMetrics = field(default_factory=HttpMetrics)
    """Counts what this API is asked."""

    @contextmanager
    def running_engine(self, refusal: Refusal) -> Iterator[Engine]:
        """The engine for the length of a block; what keeps it from answering becomes the operation's own refusal."""
        engine = self.engine()
        if engine is None:
            raise refused(503, refusal(NOT_INITIALIZED))
        try:
            yield engine
        except EngineError as error:
            raise refused(engine_status(error), refusal(str(error))) from error


def refused(status: int, body: JsonObject) -> falcon.HTTPStatus:
    """An answer other than the good one, in the shape that the operation documents."""
    return falcon.HTTPStatus(status, text=json.dumps(body))
