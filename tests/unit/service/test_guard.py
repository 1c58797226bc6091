"""The guard in front of the real operations: who gets in, and what the others are told."""

from __future__ import annotations

import pytest
from falcon.testing import Result, TestClient

from service import assets
from service.access import AccessControl, Policy, Token, digest
from service.app import create_app
from service.context import Context
from service.document import Document, Operation
from service.validation import BODY_LIMIT
from tests.support.example_requests import example_request
from tests.support.fake_engine import FakeEngine

DOCUMENT = Document.load(assets.openapi_path())
OPERATIONS = list(DOCUMENT.operations())
CHANGING = [each for each in OPERATIONS if each.spec["x-role"] == "operator"]
READER, OPERATOR = "r" * 20, "o" * 20
TOKENS = (Token("grafana", "reader", digest(READER)), Token("alice", "operator", digest(OPERATOR)))
GUARDED = Policy(TOKENS, open_probes=False)
ELSEWHERE = "192.0.2.7"


def client(policy: Policy) -> TestClient:
    return TestClient(create_app(Context(FakeEngine, DOCUMENT, access=AccessControl(policy)), validate_responses=True))


def ask(asked: TestClient, operation: Operation, peer: str = "127.0.0.1", **headers: str | None) -> Result:
    """The operation's example request, with header names written with underscores."""
    example = example_request(DOCUMENT, operation)
    sent = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    return asked.simulate_request(
        example.method,
        example.path,
        query_string=example.query,
        headers={**example.headers, **sent},
        body=example.body,
        remote_addr=peer,
    )


def got_in(result: Result) -> bool:
    """Whether the guard let a request pass, whatever the operation made of it."""
    return result.status_code not in (401, 403)


def bearer(token: str) -> str:
    return f"Bearer {token}"


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_with_tokens_nobody_gets_in_without_one(operation: Operation) -> None:
    asked = client(GUARDED)
    for header, challenge in [
        (None, 'Bearer realm="kvkeep"'),
        ("Basic YTpi", 'Bearer realm="kvkeep"'),
        (bearer("x" * 20), 'Bearer realm="kvkeep", error="invalid_token"'),
    ]:
        refused = ask(asked, operation, Authorization=header)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, challenge)
        assert refused.json["type"] == "urn:kvkeep:problem:unauthorized"


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_a_reader_reads_and_an_operator_does_everything(operation: Operation) -> None:
    asked = client(GUARDED)
    assert got_in(ask(asked, operation, Authorization=bearer(OPERATOR)))
    refused = ask(asked, operation, Authorization=bearer(READER))
    assert got_in(refused) == (operation not in CHANGING)
    if operation in CHANGING:
        assert refused.status_code == 403
        assert refused.headers["www-authenticate"] == 'Bearer realm="kvkeep", error="insufficient_scope"'
        assert refused.json["detail"].endswith("this one has the role reader")


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_without_tokens_others_read_and_this_machine_changes(operation: Operation) -> None:
    asked = client(Policy())
    assert got_in(ask(asked, operation))
    there = ask(asked, operation, peer=ELSEWHERE)
    assert got_in(there) == (operation not in CHANGING)
    if operation in CHANGING:
        assert there.status_code == 401
        assert there.headers["www-authenticate"] == 'Bearer realm="kvkeep"'
        assert "http.allow_unauthenticated" in there.json["detail"]
    assert got_in(ask(client(Policy(allow_unauthenticated=True)), operation, peer=ELSEWHERE))


@pytest.mark.parametrize("operation", CHANGING, ids=str)
@pytest.mark.parametrize("header", ["X_Forwarded_For", "Forwarded", "X_Real_IP", "X_Remote_Addr", "Remote_Addr"])
def test_no_header_makes_a_caller_local(operation: Operation, header: str) -> None:
    value = "for=127.0.0.1" if header == "Forwarded" else "127.0.0.1"
    assert ask(client(Policy()), operation, peer=ELSEWHERE, **{header: value}).status_code == 401


@pytest.mark.parametrize("operation", CHANGING, ids=str)
def test_a_page_of_another_site_changes_nothing(operation: Operation) -> None:
    for policy, header in [(Policy(), None), (GUARDED, bearer(OPERATOR))]:
        refused = ask(client(policy), operation, Authorization=header, Origin="http://evil.example")
        assert (refused.status_code, "www-authenticate" in refused.headers) == (403, False)
        assert "another site" in refused.json["detail"]
        assert ask(client(policy), operation, Authorization=header, Sec_Fetch_Site="cross-site").status_code == 403


def test_what_is_refused_is_not_carried_out() -> None:
    engine = FakeEngine()
    asked = TestClient(create_app(Context(lambda: engine, DOCUMENT)))
    asked.simulate_post("/api/clear-cache", remote_addr=ELSEWHERE)
    asked.simulate_post("/api/clear-cache", headers={"Origin": "http://evil.example"})
    assert engine.clears == 0


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.method == "GET"], ids=str)
def test_head_needs_what_get_needs(operation: Operation) -> None:
    asked, example = client(GUARDED), example_request(DOCUMENT, operation)
    refused = asked.simulate_head(example.path, query_string=example.query)
    assert (refused.status_code, refused.text) == (401, "")
    assert "www-authenticate" in refused.headers
    known = {"Authorization": bearer(READER)}
    head = asked.simulate_head(example.path, query_string=example.query, headers=known)
    get = asked.simulate_get(example.path, query_string=example.query, headers=known)
    assert head.status_code == get.status_code
    assert got_in(head)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_options_and_wrong_methods_are_answered_without_a_token(operation: Operation) -> None:
    asked = client(GUARDED)
    path = example_request(DOCUMENT, operation).path
    options = asked.simulate_options(path)
    assert options.status_code == 204
    assert operation.method in options.headers["allow"]
    wrong = asked.simulate_request("PATCH", path)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, options.headers["allow"])


def test_an_unknown_path_is_told_without_a_token() -> None:
    assert client(GUARDED).simulate_get("/no/such/path").status_code == 404


def test_the_limit_of_bodies_comes_before_the_guard_and_the_guard_before_every_other_check() -> None:
    asked = client(GUARDED)
    assert asked.simulate_put("/api/loglevel", body="x" * (BODY_LIMIT + 1)).status_code == 413
    wrong = {"body": "{", "headers": {"Content-Type": "application/json"}}
    assert asked.simulate_put("/api/loglevel", **wrong).status_code == 401
    assert asked.simulate_put("/api/loglevel", body="x").status_code == 401


def test_probes_and_metrics_are_open_by_setting() -> None:
    asked = client(Policy(TOKENS))
    assert asked.simulate_get("/api/healthcheck").status_code == 200
    assert asked.simulate_get("/metrics").status_code == 401
    assert client(Policy(TOKENS, open_metrics=True)).simulate_get("/metrics").status_code == 200


def test_tokens_are_replaced_while_the_server_runs() -> None:
    access = AccessControl()
    asked = TestClient(create_app(Context(FakeEngine, DOCUMENT, access=access)))
    assert asked.simulate_get("/api/status").status_code == 200
    access.replace(GUARDED)
    assert asked.simulate_get("/api/status").status_code == 401
