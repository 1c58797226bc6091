"""What the HTTP API counts of itself: requests by operation and status, how long they took, how many are under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import falcon

from engine import Histogram, HistogramReport
from service.document import Document
from service.validation import Described

UNMATCHED: Final = "unmatched"
"""Stands for the operation of a request that asks for none: an unknown path or method, OPTIONS."""
UNMATCHED_STATUSES: Final = (204, 404, 405, 413, 500)

BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0)
"""Seconds."""


@dataclass(frozen=True, slots=True)
class HttpReport:
    """Requests since the start."""

    in_flight: int
    requests: dict[tuple[str, int], int]
    """Answered requests by operationId and status."""
    seconds: dict[str, HistogramReport]
    """Their durations by operationId."""


class HttpMetrics:
    """Counts requests. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight = 0
        self._requests = {(UNMATCHED, status): 0 for status in UNMATCHED_STATUSES}
        self._seconds = {UNMATCHED: Histogram(BOUNDS)}

    def expect(self, document: Document) -> None:
        """Begins every operation of the document at 0, with every status that it has."""
        for operation in document.operations():
            name = operation.spec["operationId"]
            self._seconds.setdefault(name, Histogram(BOUNDS))
            for status in operation.spec["responses"]:
                self._requests.setdefault((name, int(status)), 0)

    def begin(self) -> None:
        """A request has come in."""
        with self._lock:
            self._in_flight += 1

    def end(self, operation: str, status: int, seconds: float) -> None:
        """It is answered. `operation`: an operationId, or UNMATCHED."""
        with self._lock:
            self._in_flight -= 1
            self._requests[operation, status] = self._requests.get((operation, status), 0) + 1
            self._seconds[operation].observe(seconds)

    def report(self) -> HttpReport:
        """Everything so far."""
        with self._lock:
            seconds = {operation: histogram.snapshot() for operation, histogram in self._seconds.items()}
            return HttpReport(self._in_flight, dict(self._requests), seconds)


class HttpMetricsMiddleware:
    """Counts every request from before the other middleware to after it."""

    def __init__(
        self, metrics: HttpMetrics, described: Described, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._metrics = metrics
        self._described = described
        self._clock = clock

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Takes the time."""
        req.context.received = self._clock()
        self._metrics.begin()

    def process_response(self, req: falcon.Request, resp: falcon.Response, resource: Any, req_succeeded: bool) -> None:
        """Counts what was answered."""
        operation = self._described.operation(req)
        name = operation.spec["operationId"] if operation is not None else UNMATCHED
        self._metrics.end(name, falcon.http_status_to_code(resp.status), self._clock() - req.context.received)
