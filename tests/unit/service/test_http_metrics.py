"""Requests are counted by what they asked for and what they were answered, from any number of threads."""

from __future__ import annotations

import threading

import pytest
from falcon.testing import TestClient

from service.app import create_app
from service.context import Context, Engine
from service.http_metrics import BOUNDS, UNMATCHED, UNMATCHED_STATUSES, HttpMetrics
from service.validation import BODY_LIMIT
from tests.support.fake_engine import FakeEngine, stopped
from tests.unit.service.exposition import DOCUMENT, http_metrics


class Asked:
    """An application, and what it has counted since it was made."""

    def __init__(self, engine: Engine | None) -> None:
        self.metrics = HttpMetrics()
        self.client = TestClient(create_app(Context(lambda: engine, DOCUMENT, http_metrics=self.metrics)))

    @property
    def counted(self) -> dict[tuple[str, int], int]:
        return {key: count for key, count in self.metrics.report().requests.items() if count}


@pytest.mark.parametrize(
    ("method", "path", "engine", "counted"),
    [
        ("GET", "/", None, ("getRoot", 200)),
        ("GET", "/api/status", FakeEngine(), ("getStatus", 200)),
        ("GET", "/status", FakeEngine(), ("getStatusAlias", 200)),
        ("GET", "/api/status", stopped(), ("getStatus", 503)),
        ("HEAD", "/api/status", FakeEngine(), ("getStatus", 200)),
        ("POST", "/api/clear-cache", None, ("clearCache", 503)),
        ("GET", "/metrics", None, ("getMetrics", 200)),
        ("GET", "/nothing", None, (UNMATCHED, 404)),
        ("GET", "/api/status/1/2?x=y", None, (UNMATCHED, 404)),
        ("PUT", "/api/status", None, (UNMATCHED, 405)),
        ("OPTIONS", "/api/status", None, (UNMATCHED, 204)),
    ],
)
def test_a_request_counts_once_for_its_operation(
    method: str, path: str, engine: Engine | None, counted: tuple[str, int]
) -> None:
    asked = Asked(engine)
    before = asked.metrics.report().requests.keys()
    asked.client.simulate_request(method, path)
    assert asked.counted == {counted: 1}
    assert asked.metrics.report().requests.keys() == before
    assert asked.metrics.report().seconds[counted[0]].total == 1
    assert asked.metrics.report().in_flight == 0


@pytest.mark.parametrize(("path", "name"), [("/api/clear-cache", "clearCache"), ("/nothing", UNMATCHED)])
def test_a_body_that_is_too_large_counts_for_its_operation_though_it_is_never_routed(path: str, name: str) -> None:
    asked = Asked(None)
    asked.client.simulate_post(path, body=b"x" * (BODY_LIMIT + 1))
    assert asked.counted == {(name, 413): 1}


def test_a_request_that_fails_by_a_defect_counts_as_500() -> None:
    class Broken(FakeEngine):
        def status(self):
            raise RuntimeError("a defect")

    asked = Asked(Broken())
    asked.client.simulate_get("/api/status")
    assert asked.counted == {("getStatus", 500): 1}


def test_a_request_is_under_way_until_it_is_answered() -> None:
    seen = []

    class Looking(FakeEngine):
        def status(self):
            seen.append(asked.metrics.report().in_flight)
            return super().status()

    asked = Asked(Looking())
    asked.client.simulate_get("/api/status")
    assert (seen, asked.metrics.report().in_flight) == ([1], 0)


def test_every_documented_answer_begins_at_0() -> None:
    report = http_metrics().report()
    documented = {
        (each.spec["operationId"], int(status)) for each in DOCUMENT.operations() for status in each.spec["responses"]
    }
    assert documented | {(UNMATCHED, status) for status in UNMATCHED_STATUSES} == report.requests.keys()
    assert set(report.requests.values()) == {0}
    assert report.seconds.keys() == {name for name, _ in report.requests}


def test_durations_fall_into_buckets() -> None:
    metrics = http_metrics()
    for seconds in (0.0004, 0.0005, 0.3, 11.0):
        metrics.begin()
        metrics.end("getRoot", 200, seconds)
    counted = metrics.report().seconds["getRoot"]
    assert counted.bounds == BOUNDS
    assert (counted.counts[0], counted.counts[BOUNDS.index(1.0)], counted.counts[-1]) == (2, 1, 1)


def test_no_request_is_lost_between_threads() -> None:
    metrics, together = http_metrics(), threading.Barrier(4)

    def ask() -> None:
        together.wait(10)
        for _ in range(2000):
            metrics.begin()
            metrics.end("getRoot", 200, 0.0)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = metrics.report()
    assert (report.requests["getRoot", 200], report.seconds["getRoot"].total, report.in_flight) == (8000, 8000, 0)
