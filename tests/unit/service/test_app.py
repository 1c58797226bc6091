"""The HTTP application over an engine in every state; answers are held against the document all the while."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from falcon.testing import Result, TestClient

from engine import EngineError, StatusReport
from service import assets
from service.app import create_app
from service.context import Context, Engine
from service.document import Document
from service.logs import Logs
from service.resources.metrics_api import BURST
from service.status_view import status_body
from service.validation import BODY_LIMIT
from tests.support.fake_engine import (
    HEALTHY,
    LARGE_ID,
    UNHEALTHY,
    FakeEngine,
    context,
    failing,
    stopped,
    stuck,
)

DOCUMENT = Document.load(assets.openapi_path())
NOT_READY = "engine not initialized"
READING = ["/", "/api/healthcheck", "/healthcheck", "/api/status", "/status"]


def client(engine: Engine | None) -> TestClient:
    return TestClient(create_app(context(engine), validate_responses=True))


def problem(result: Result, status: int) -> dict[str, object]:
    assert result.status_code == status
    assert result.headers["content-type"] == "application/problem+json"
    body = result.json
    assert body["status"] == status
    assert {"type", "title", "detail"} <= set(body)
    assert body["request_id"] == result.headers["x-request-id"]
    return dict(body)


@pytest.mark.parametrize("engine", [None, FakeEngine(), FakeEngine(UNHEALTHY), stopped()])
def test_the_root_answers_in_every_state(engine: Engine | None) -> None:
    result = client(engine).simulate_get("/")
    assert (result.status_code, result.json) == (200, {"status": "ok", "service": "LMCache HTTP API"})


@pytest.mark.parametrize("path", ["/api/healthcheck", "/healthcheck"])
@pytest.mark.parametrize(
    ("engine", "status", "body"),
    [
        (FakeEngine(), 200, {"status": "healthy"}),
        (None, 503, {"status": "unhealthy", "reason": NOT_READY}),
        (stopped(), 503, {"status": "unhealthy", "reason": "engine: the engine thread has ended"}),
        (FakeEngine(UNHEALTHY), 503, {"status": "unhealthy", "reason": "transfer: the transfer thread has ended"}),
        (FakeEngine(checks=failing("l2.fs", "no such folder")), 200, {"status": "healthy"}),
    ],
)
def test_the_health_check_says_what_is_wrong(path: str, engine: Engine | None, status: int, body: object) -> None:
    result = client(engine).simulate_get(path)
    assert (result.status_code, result.json) == (status, body)
    assert result.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/api/status", "/status"])
@pytest.mark.parametrize(("engine", "reason"), [(None, NOT_READY), (stopped(), "the engine has ended")])
def test_without_an_engine_there_is_no_status(path: str, engine: Engine | None, reason: str) -> None:
    result = client(engine).simulate_get(path)
    assert (result.status_code, result.json) == (503, {"error": reason})


@pytest.mark.parametrize("path", ["/api/status", "/status"])
@pytest.mark.parametrize("report", [HEALTHY, UNHEALTHY])
def test_the_status_answers_whether_or_not_it_is_healthy(path: str, report) -> None:
    result = client(FakeEngine(report)).simulate_get(path)
    assert (result.status_code, result.json["is_healthy"]) == (200, report.is_healthy)


def test_a_large_instance_id_keeps_every_digit() -> None:
    body = client(FakeEngine()).simulate_get("/api/status").text
    assert f"[{LARGE_ID}, 7]" in body
    assert f'"{LARGE_ID}": {{' in body


def test_a_report_is_shown_as_it_is_and_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []

    def body(report: StatusReport) -> dict[str, object]:
        rendered.append(report)
        return status_body(report)

    monkeypatch.setattr("service.resources.status_api.status_body", body)
    engine = FakeEngine()
    asked = client(engine)
    first = [asked.simulate_get(path).text for path in ("/api/status", "/status", "/api/status")]
    assert (len(set(first)), rendered) == (1, [HEALTHY])
    engine.report = replace(HEALTHY, active_sessions=6)
    assert asked.simulate_get("/api/status").json["active_sessions"] == 6
    assert len(rendered) == 2


def test_who_scrapes_seldom_is_told_the_present_and_many_scrapes_are_given_one_exposition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered = []
    monkeypatch.setattr("service.metrics.generate_latest", lambda registry: rendered.append(registry) or b"# \n")
    asked = client(FakeEngine())
    results = [asked.simulate_get("/metrics") for _ in range(100)]
    assert {result.headers["content-type"] for result in results} == {"text/plain; version=0.0.4; charset=utf-8"}
    assert BURST <= len(rendered) < 50


def test_each_of_a_few_scrapes_is_told_the_last_report() -> None:
    engine = FakeEngine()
    asked = client(engine)
    assert "\nkvkeep_sessions 5.0\n" in asked.simulate_get("/metrics").text
    engine.report = replace(HEALTHY, active_sessions=6)
    assert "\nkvkeep_sessions 6.0\n" in asked.simulate_get("/metrics").text


@pytest.mark.parametrize("engine", [None, stopped()])
def test_metrics_are_answered_without_an_engine(engine: Engine | None) -> None:
    result = client(engine).simulate_get("/metrics")
    assert result.status_code == 200
    assert "\nkvkeep_engine_ready 0.0\n" in result.text


def test_clearing_tells_the_engine_once() -> None:
    engine = FakeEngine()
    result = client(engine).simulate_post("/api/clear-cache")
    assert (result.status_code, result.json, engine.clears) == (200, {"status": "ok"}, 1)


@pytest.mark.parametrize(
    ("engine", "reason"), [(None, NOT_READY), (stopped(), "the engine has ended"), (stuck(), "no answer within 10 s")]
)
def test_what_was_not_cleared_is_told(engine: Engine | None, reason: str) -> None:
    result = client(engine).simulate_post("/api/clear-cache")
    assert (result.status_code, result.json) == (503, {"status": "error", "reason": reason})


@pytest.mark.parametrize(
    "media_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "a/b; c=d", None]
)
@pytest.mark.parametrize("body", [b"", b"{", b"\xff\x00", b"x" * BODY_LIMIT])
def test_clearing_ignores_any_body_up_to_the_limit(media_type: str | None, body: bytes) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    result = client(FakeEngine()).simulate_post("/api/clear-cache", body=body, headers=headers)
    assert (result.status_code, result.json) == (200, {"status": "ok"})


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/clear-cache"), ("GET", "/"), ("POST", "/no/such/path")])
def test_a_body_over_the_limit_is_refused_whatever_the_path(method: str, path: str) -> None:
    engine = FakeEngine()
    result = client(engine).simulate_request(method, path, body=b"x" * (BODY_LIMIT + 1))
    assert problem(result, 413)["title"] == "Content Too Large"
    assert engine.clears == 0


@pytest.mark.parametrize("engine", [None, FakeEngine()])
@pytest.mark.parametrize("path", READING)
def test_head_answers_what_get_does_without_the_body(engine: Engine | None, path: str) -> None:
    asked = client(engine)
    get, head = asked.simulate_get(path), asked.simulate_head(path)
    assert head.status_code == get.status_code
    assert head.text == ""
    for header in ("content-type", "content-length"):
        assert head.headers[header] == get.headers[header]


@pytest.mark.parametrize(
    ("path", "allowed"), [*((path, "GET, HEAD, OPTIONS") for path in READING), ("/api/clear-cache", "OPTIONS, POST")]
)
def test_options_and_405_tell_the_allowed_methods(path: str, allowed: str) -> None:
    asked = client(FakeEngine())
    options = asked.simulate_options(path)
    assert (options.status_code, options.headers["allow"], options.text) == (204, allowed, "")
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "TRACE"} - set(allowed.split(", ")):
        refused = asked.simulate_request(method, path)
        assert problem(refused, 405)["title"] == "Method Not Allowed"
        assert refused.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/nothing", "/api", "/api/status/", "/API/STATUS"])
def test_an_unknown_path_is_a_problem(path: str) -> None:
    assert problem(client(FakeEngine()).simulate_get(path), 404)["type"] == "urn:kvkeep:problem:not-found"


class Broken(FakeEngine):
    """An engine whose report cannot be shown."""

    def status(self):
        raise RuntimeError("a secret of the inside")


def test_an_unexpected_error_shows_no_internals() -> None:
    written = io.StringIO()
    with Logs().written(written, "human"):
        result = client(Broken()).simulate_get("/api/status", headers={"X-Request-ID": "abc-1"})
    assert "secret" not in result.text
    assert problem(result, 500)["request_id"] == "abc-1"
    assert "GET /api/status failed [request abc-1]" in written.getvalue()
    assert "a secret of the inside" in written.getvalue()


def test_a_refusal_that_is_in_no_table_is_a_500() -> None:
    result = client(FakeEngine(refusal=EngineError("new"))).simulate_post("/api/clear-cache")
    # The document does not have this status in this shape, which the check of answers turns into a problem.
    problem(result, 500)


def test_the_callers_request_id_comes_back() -> None:
    assert (
        client(None).simulate_get("/", headers={"X-Request-ID": "a.B:c/7=_+-"}).headers["x-request-id"] == "a.B:c/7=_+-"
    )


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", "a\tb", 'a"b', "ä"])
def test_a_request_id_that_could_forge_a_log_line_is_replaced(sent: str) -> None:
    made = [client(None).simulate_get("/", headers={"X-Request-ID": sent}).headers["x-request-id"] for _ in range(2)]
    assert sent not in made
    assert len({*made}) == 2


def test_an_answer_that_is_not_the_documents_is_caught_where_answers_are_checked(caplog) -> None:
    content = json.loads(json.dumps(DOCUMENT.content))
    content["components"]["schemas"]["Healthy"]["properties"]["status"]["const"] = "fine"
    asked = TestClient(create_app(Context(FakeEngine, Document(content)), validate_responses=True))
    problem(asked.simulate_get("/api/healthcheck"), 500)
    assert "GET /api/healthcheck answered 200" in caplog.text
    assert "'fine' was expected" in caplog.text
    unchecked = TestClient(create_app(Context(FakeEngine, Document(content))))
    assert unchecked.simulate_get("/api/healthcheck").status_code == 200
