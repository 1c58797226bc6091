"""Secrets are planted where secrets belong, everything that a server says is collected, and they are looked for."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest

from service import assets
from service.__main__ import main
from service.document import Document, Operation
from tests.support.example_requests import ExampleRequest, example_request
from tests.support.server import Server, http

DOCUMENT = Document.load(assets.openapi_path())
OPERATIONS = list(DOCUMENT.operations())
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")

OPERATOR = "planted-operator-token-aYq7"
READER = "planted-reader-token-bZr8"
VARIABLE = "planted-variable-cXs9"
PLANTED = (OPERATOR, READER, VARIABLE)


def traces(secret: str) -> Iterator[str]:
    """A secret as it stands, and what somebody could make it from or know it by."""
    raw = secret.encode()
    yield secret
    yield from (hashlib.sha256(raw).hexdigest(), repr(hashlib.sha256(raw).digest())[2:-1])
    yield from (base64.b64encode(raw).decode().rstrip("="), raw.hex())


ALICE = {"Authorization": f"Bearer {OPERATOR}"}
FORBIDDEN = [trace for secret in PLANTED for trace in traces(secret)]


def found_in(text: str) -> list[str]:
    return [trace for trace in FORBIDDEN if trace in text]


class Planted(Server):
    """kvkeep with a secret in each token's file and in the environment, saying as much as it can."""

    def __init__(self) -> None:
        super().__init__()
        plant(self.folder)
        self.flags = ("--config", str(self.folder / "kvkeep.yaml"))

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **environment()}


def environment() -> dict[str, str]:
    return {"READER_FILE": f"{VARIABLE}.token", "SECRET": VARIABLE, "LEVEL": "debug"}


def plant(folder: Path) -> None:
    """Files that everybody can read: so the server speaks of them."""
    (folder / "operator.token").write_text(OPERATOR)
    (folder / f"{VARIABLE}.token").write_text(READER + "\n")
    (folder / "kvkeep.yaml").write_text(
        """\
log: {level: "${LEVEL}"}
http:
  tokens:
    - {name: alice, role: operator, file: operator.token}
    - {name: grafana, role: reader, file: "${READER_FILE}"}
"""
    )


def requests(operation: Operation) -> Iterator[tuple[ExampleRequest, dict[str, str]]]:
    """Right and wrong bodies and queries from every kind of caller, and every other method."""
    example, method = example_request(DOCUMENT, operation), operation.method
    json_body = {"Content-Type": "application/json"}
    inputs = [
        example,
        ExampleRequest(method, example.path, f"access_token={OPERATOR}&{READER}", json_body, b"{"),
        ExampleRequest(method, example.path, "verbose=&limit=x&cursor=%00", json_body, b'{"level": 5, "file": []}'),
        ExampleRequest(method, example.path, example.query, {"Content-Type": "text/plain"}, b"x"),
    ]
    callers = [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {OPERATOR[:-1]}"},
        {"Authorization": f"Basic {OPERATOR}"},
        {"Authorization": f"Bearer {READER}, Bearer {OPERATOR}"},
        {"Authorization": f"Bearer {READER}"},
        {"Authorization": f"Bearer {OPERATOR}"},
        {"Authorization": f"Bearer {OPERATOR}", "Origin": "http://evil.example"},
    ]
    yield from itertools.product(inputs, callers)
    yield replace(example, body=b"x" * (1 << 20 | 1)), ALICE
    yield from itertools.product((replace(example, method=other) for other in METHODS), (callers[0], ALICE))


def answers(server: Server, operation: Operation) -> Iterator[tuple[int, str]]:
    """Status and the whole answer as text, headers and body, to each of those requests."""
    connection = HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    for sent, caller in requests(operation):
        connection.request(sent.method, sent.target, sent.body, {**sent.headers, **caller})
        answer = connection.getresponse()
        yield answer.status, f"{answer.headers}{answer.read().decode(errors='replace')}"
    connection.close()


def test_no_answer_and_no_line_of_the_log_has_a_secret() -> None:
    statuses = set()
    with Planted() as server:
        assert http("GET", server.http_url + "/api/loglevel", headers=ALICE) == (200, {"level": "debug", "loggers": {}})
        for operation in OPERATIONS:
            for status, text in answers(server, operation):
                statuses.add(status)
                assert found_in(text) == [], f"{operation} answers {status} with a secret"
        assert server.stop() == 0
        log = server.output()
    assert statuses >= {200, 204, 400, 401, 403, 405, 413, 415}
    for text in ("kvkeep.audit", "every user of this machine can read", '"who": "alice"', "cleared 0 objects"):
        assert text in log
    assert found_in(log) == []


@pytest.fixture
def kvkeep(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command that ends by itself and returns everything that it prints."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> str:
        main(arguments)
        return "".join(capsys.readouterr())

    return run


def test_the_commands_that_print_settings_show_no_secret(tmp_path: Path, kvkeep: Callable[..., str]) -> None:
    plant(tmp_path)
    shown = kvkeep("show-config", "--config", str(tmp_path / "kvkeep.yaml"))
    assert "environment READER_FILE" in shown
    checked = kvkeep("check-config", str(tmp_path / "kvkeep.yaml"))
    assert checked.count("every user of this machine can read") == 2
    assert "kvkeep.yaml: ok" in checked
    assert found_in(shown + checked) == []


WRONG = [
    'log: {format: "${SECRET}"}',
    'log: {format: "x-${SECRET}"}',
    "server:\n  port: ${SECRET}",
    'server: {"unknown": "${SECRET}"}',
    'server: {"host": ["${SECRET}"]}',
    '"${SECRET}"',
    '["${SECRET}"]',
    'l1: {size: "${SECRET}"}',
    'l2: [{type: "${SECRET}", password: "${SECRET}"}]',
    'http: {tokens: "${SECRET}"}',
    f"http: {{tokens: {OPERATOR}}}",
    f"http: {{tokens: [{OPERATOR}]}}",
    f"http: {{tokens: [{{name: a, role: reader, token: {OPERATOR}}}]}}",
    'http: {tokens: [{name: "${SECRET}!", role: "${SECRET}", file: operator.token}]}',
    'http: {tokens: [{name: a, role: reader, file: "${SECRET}"}]}',
    "http: {tokens: [{name: a, role: reader, file: short.token}]}",
    "http: {tokens: [{name: a, role: reader, file: two.token}]}",
    "http: {tokens: [{name: a, role: reader, file: operator.token}, {name: b, role: reader, file: operator.token}]}",
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_with_a_secret_is_told_without_it(tmp_path: Path, text: str, kvkeep: Callable[..., str]) -> None:
    plant(tmp_path)
    (tmp_path / "short.token").write_text(OPERATOR[-9:])
    (tmp_path / "two.token").write_text(f"{OPERATOR} {READER}")
    (tmp_path / "wrong.yaml").write_text(text)
    file = str(tmp_path / "wrong.yaml")
    for printed in (kvkeep("check-config", file), kvkeep("--config", file), kvkeep("show-config", "--config", file)):
        assert f"{file}:" in printed
        assert "ok" not in printed.split()
        assert found_in(printed) == []
        assert OPERATOR[-9:] not in printed
