"""Recordings, looked at and switched over HTTP."""

from __future__ import annotations

import pytest
from falcon.testing import TestClient

from engine import EngineTimeoutError, RecordingError
from service.app import create_app
from tests.support.fake_engine import FakeEngine, context

SHOWN = {
    "enabled": True,
    "folder": "/recordings",
    "file": "recording-20250301-120000-2.jsonl",
    "lines": 5120,
    "bytes": 901_120,
    "dropped": 3,
    "problem": None,
}


class SwitchedEngine(FakeEngine):
    """Remembers how it was switched."""

    def __init__(self) -> None:
        super().__init__()
        self.switches: list[bool] = []

    def record(self, enabled: bool) -> None:
        """Takes it."""
        self.switches.append(enabled)


def client(engine: FakeEngine | None) -> TestClient:
    return TestClient(create_app(context(engine), validate_responses=True))


def test_it_is_shown() -> None:
    assert client(FakeEngine()).simulate_get("/api/recording").json == SHOWN


def test_it_is_switched_and_shown() -> None:
    engine = SwitchedEngine()
    for enabled in (True, False):
        answer = client(engine).simulate_put("/api/recording", json={"enabled": enabled})
        assert (answer.status_code, answer.json) == (200, SHOWN)
    assert engine.switches == [True, False]


@pytest.mark.parametrize("body", [{}, {"enabled": 1}, {"enabled": "on"}, {"enabled": True, "folder": "/tmp"}, []])
def test_another_body_changes_nothing(body: object) -> None:
    engine = SwitchedEngine()
    answer = client(engine).simulate_put("/api/recording", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert engine.switches == []


@pytest.mark.parametrize(("error", "status"), [(RecordingError("no folder"), 409), (EngineTimeoutError("stuck"), 503)])
def test_what_cannot_be_done_says_why(error: RecordingError | EngineTimeoutError, status: int) -> None:
    answer = client(FakeEngine(refusal=error)).simulate_put("/api/recording", json={"enabled": True})
    assert (answer.status_code, answer.json["detail"]) == (status, str(error))


def test_without_an_engine_nothing_is_recorded() -> None:
    assert client(None).simulate_put("/api/recording", json={"enabled": True}).status_code == 503
