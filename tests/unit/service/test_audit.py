"""One line for every mutation that was asked for, whatever became of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from falcon.testing import Result, TestClient

from service import assets
from service.access import AccessControl, Policy, Token, digest
from service.app import create_app
from service.context import Context
from service.document import Document, Operation
from service.logs import Logs, current_request
from service.validation import BODY_LIMIT
from tests.support.example_requests import example_request
from tests.support.fake_engine import FakeEngine, stopped

DOCUMENT = Document.load(assets.openapi_path())
OPERATIONS = list(DOCUMENT.operations())
CHANGING = [each for each in OPERATIONS if each.spec["x-role"] == "operator"]
READER, OPERATOR = "r" * 20, "o" * 20
GUARDED = Policy((Token("grafana", "reader", digest(READER)), Token("alice", "operator", digest(OPERATOR))))
ALICE = {"Authorization": f"Bearer {OPERATOR}"}


def lines(
    ask: Callable[[TestClient], Result], policy: Policy = GUARDED, engine: FakeEngine | None = None, style: str = "json"
) -> list[Any]:
    """What the audit log has of some requests."""
    context = Context(lambda: engine or FakeEngine(), DOCUMENT, access=AccessControl(policy))
    stream = io.StringIO()
    with Logs().written(stream, style):
        ask(TestClient(create_app(context)))
    written = [line for line in stream.getvalue().splitlines() if "kvkeep.audit" in line]
    return [json.loads(line) for line in written] if style == "json" else written


def clear(**more: Any) -> Callable[[TestClient], Result]:
    return lambda client: client.simulate_post("/api/clear-cache", **more)


@pytest.mark.parametrize("operation", CHANGING, ids=str)
def test_every_mutation_is_one_line(operation: Operation) -> None:
    example = example_request(DOCUMENT, operation)
    headers = {**example.headers, **ALICE, "X-Request-ID": "abc-1"}

    answers = []

    def ask(client: TestClient) -> Result:
        answers.append(
            client.simulate_request(
                example.method, example.path, query_string=example.query, headers=headers, body=example.body
            )
        )
        return answers[0]

    [line] = lines(ask)
    assert line.pop("duration_ms") >= 0
    assert {key: line[key] for key in ("who", "peer", "operation", "method", "status", "request_id", "target")} == {
        "who": "alice",
        "peer": "127.0.0.1",
        "operation": operation.spec["operationId"],
        "method": operation.method,
        "status": answers[0].status_code,
        "request_id": "abc-1",
        "target": example.target,
    }


def test_a_line_for_people_has_all_of_it() -> None:
    [line] = lines(clear(headers={**ALICE, "X-Request-ID": "abc-1"}, remote_addr="192.0.2.7"), style="human")
    before, _, after = line.partition(": 200, ")
    assert before.endswith("INFO kvkeep.audit: alice from 192.0.2.7: clearCache POST /api/clear-cache")
    assert after.endswith(" ms [request abc-1]")


@pytest.mark.parametrize(
    ("request_", "who", "status"),
    [
        (clear(), "anonymous", 401),
        (clear(headers={"Authorization": "Bearer wrong"}), "anonymous", 401),
        (clear(headers={"Authorization": f"Bearer {READER}"}), "grafana", 403),
        (clear(headers={**ALICE, "Origin": "http://evil.example"}), "alice", 403),
        (clear(headers=ALICE, body="x" * (BODY_LIMIT + 1)), "alice", 413),
        (clear(body="x" * (BODY_LIMIT + 1)), "anonymous", 413),
        (lambda client: client.simulate_put("/api/loglevel", headers=ALICE, json={"level": "loud"}), "alice", 400),
        (lambda client: client.simulate_put("/api/loglevel", headers=ALICE, body="x"), "alice", 415),
    ],
)
def test_what_was_refused_is_a_line_too(request_: Callable[[TestClient], Result], who: str, status: int) -> None:
    [line] = lines(request_)
    assert (line["who"], line["status"]) == (who, status)


def test_what_could_not_be_done_is_a_line_too() -> None:
    assert [line["status"] for line in lines(clear(), Policy(), stopped())] == [503]
    broken = FakeEngine()
    broken.ask = lambda command, timeout: 1 / 0  # type: ignore[method-assign]
    assert [line["status"] for line in lines(clear(), Policy(), broken)] == [500]


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each not in CHANGING], ids=str)
def test_reading_is_none(operation: Operation) -> None:
    example = example_request(DOCUMENT, operation)

    def ask(client: TestClient) -> Result:
        client.simulate_request(example.method, example.path, headers={**example.headers, **ALICE}, body=example.body)
        return client.simulate_request("PATCH", example.path)

    assert lines(ask) == []


def test_what_is_no_operation_is_none() -> None:
    assert lines(lambda client: client.simulate_post("/no/such/path")) == []
    assert lines(lambda client: client.simulate_post("/no/such/path", body="x" * (BODY_LIMIT + 1))) == []
    assert lines(lambda client: client.simulate_options("/api/clear-cache")) == []


def test_a_query_that_the_document_does_not_know_is_not_shown() -> None:
    content = json.loads(json.dumps(DOCUMENT.content))
    dry = {"name": "dry_run", "in": "query", "description": "x.", "schema": {"type": "string"}, "example": "a"}
    content["paths"]["/api/clear-cache"]["post"]["parameters"] = [dry]
    content["paths"]["/api/clear-cache"]["post"]["responses"]["400"] = {"description": "x"}
    stream = io.StringIO()
    with Logs().written(stream, "json"):
        client = TestClient(create_app(Context(FakeEngine, Document(content))))
        for query in ("dry_run=a%0Ab&access_token=geheim&geheim", "access_token=geheim", "dry_run=a"):
            client.simulate_post("/api/clear-cache", query_string=query)
    found = [json.loads(line)["target"] for line in stream.getvalue().splitlines() if "kvkeep.audit" in line]
    assert found == ["/api/clear-cache?dry_run=a%0Ab&***", "/api/clear-cache?***", "/api/clear-cache?dry_run=a"]
    assert "geheim" not in stream.getvalue()


def test_no_header_forges_a_line() -> None:
    forged = clear(headers={"X-Request-ID": "a\nalice did it", "Authorization": "Bearer x\nalice"}, remote_addr="1\n2")
    assert len(lines(forged, style="human")) == 1


def test_after_an_answer_the_thread_has_no_request() -> None:
    lines(clear())
    lines(clear(body="x" * (BODY_LIMIT + 1)))
    lines(lambda client: client.simulate_get("/no/such/path"))
    assert current_request.get() is None
