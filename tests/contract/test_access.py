"""The document against servers that do not let everybody in: one with tokens, and some on a foreign address."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from service import assets
from service.document import Document, Operation
from service.schemas import Schemas
from tests.contract.conftest import GuardedServer
from tests.contract.elsewhere import ELSEWHERE, HERE
from tests.support.example_requests import example_request
from tests.support.server import ROOT, http

DOCUMENT = Document.load(assets.openapi_path())
SCHEMAS = Schemas(DOCUMENT)
OPERATIONS = list(DOCUMENT.operations())
FORBIDDING = [each for each in OPERATIONS if "403" in each.spec["responses"]]
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

schema = schemathesis.openapi.from_path(assets.openapi_path())


def changes(operation: Operation) -> bool:
    return bool(operation.spec["x-role"] == "operator")


def for_everybody(response: schemathesis.Response) -> set[int]:
    """What is answered whoever asks: unknown paths, other methods, and OPTIONS."""
    return {204, 404, 405} if response.request.method == "OPTIONS" else {404, 405}


def ask(server: GuardedServer, operation: Operation, headers: dict[str, str]) -> tuple[int, Any]:
    asked = example_request(DOCUMENT, operation)
    sent = {**asked.headers, **headers}
    return http(asked.method, server.http_url + asked.target, asked.body or None, headers=sent)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_operation_answers_401_without_a_token(operation: Operation, guarded_server: GuardedServer) -> None:
    assert "401" in operation.spec["responses"]
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        status, body = ask(guarded_server, operation, headers)
        assert status == 401
        assert SCHEMAS.faults("/components/schemas/Problem", body, "body") == []


@pytest.mark.parametrize("operation", FORBIDDING, ids=str)
def test_every_operation_that_has_403_answers_it_to_a_reader(operation, guarded_server: GuardedServer) -> None:
    status, body = ask(guarded_server, operation, guarded_server.authorization("reader"))
    assert status == 403
    assert SCHEMAS.faults("/components/schemas/Problem", body, "body") == []


def test_those_are_the_operations_that_change_something() -> None:
    assert [each for each in OPERATIONS if changes(each)] == FORBIDDING
    assert FORBIDDING


@schema.parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=SUPPRESSED)
def test_without_a_token_nothing_generated_gets_in(case: schemathesis.Case, guarded_server: GuardedServer) -> None:
    response = case.call(base_url=guarded_server.http_url)
    case.validate_response(response)
    assert response.status_code in {401, *for_everybody(response)}


@schema.parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=SUPPRESSED)
def test_a_reader_changes_nothing(case: schemathesis.Case, guarded_server: GuardedServer) -> None:
    response = case.call(base_url=guarded_server.http_url, headers=guarded_server.authorization("reader"))
    case.validate_response(response)
    if case.operation.definition.raw["x-role"] == "operator":
        assert response.status_code in {403, *for_everybody(response)}
    else:
        assert response.status_code not in (401, 403)


@schema.parametrize()
@settings(max_examples=30, deadline=None, suppress_health_check=SUPPRESSED)
def test_with_an_operators_token_all_is_as_documented(case: schemathesis.Case, guarded_server: GuardedServer) -> None:
    headers = guarded_server.authorization("operator")
    response = case.call_and_validate(base_url=guarded_server.http_url, headers=headers)
    assert response.status_code not in (401, 403)


@pytest.fixture(scope="module")
def elsewhere() -> list[dict[str, Any]]:
    """What servers on every address answer, without and with `allow_unauthenticated`."""
    namespace = ["unshare", "--user", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let tests make a network namespace")
    settings_ = ["http: {allow_unauthenticated: false}", "http: {allow_unauthenticated: true}"]
    command = [*namespace, sys.executable, "-m", "tests.contract.elsewhere", *settings_]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_on_a_foreign_address_without_tokens_others_only_read(elsewhere, operation: Operation) -> None:
    closed, opened = elsewhere
    assert (closed[ELSEWHERE][str(operation)] == 401) == changes(operation)
    assert closed[HERE][str(operation)] not in (401, 403)
    assert opened[ELSEWHERE][str(operation)] not in (401, 403)


def test_a_foreign_address_without_tokens_is_warned_of_once(elsewhere: list[dict[str, Any]]) -> None:
    for found, reach in zip(elsewhere, ("only this machine itself can change", "change everything"), strict=True):
        http_warning, data_warning = found["warnings"]
        assert http_warning.startswith("the HTTP API listens on 0.0.0.0 without tokens")
        assert reach in http_warning
        assert data_warning.startswith("the data plane listens on 0.0.0.0 and has no authentication")
