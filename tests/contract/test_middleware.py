"""The statuses that stand before every responder, reached for each operation that documents them."""

from __future__ import annotations

from typing import Any

import pytest
from falcon.testing import Result, TestClient

from service import assets
from service.app import create_app
from service.document import Document, Operation
from service.validation import BODY_LIMIT
from tests.support.example_requests import example_request
from tests.support.fake_engine import FakeEngine, context

DOCUMENT = Document.load(assets.openapi_path())


def having(status: int) -> list[Operation]:
    return [each for each in DOCUMENT.operations() if str(status) in each.spec["responses"]]


def ask(operation: Operation, **changes: Any) -> Result:
    """The operation's own example, with something else in it."""
    client = TestClient(create_app(context(FakeEngine()), validate_responses=True))
    example = example_request(DOCUMENT, operation)
    request = {"path": example.path, "query_string": example.query, "headers": example.headers, "body": example.body}
    return client.simulate_request(example.method, **(request | changes))


def wrong(operation: Operation) -> dict[str, Any]:
    """What makes the request another than the document says."""
    if "requestBody" in operation.spec:
        return {"body": b"{", "headers": {"Content-Type": "application/json"}}
    [name, place] = next(
        (each["name"], each["in"])
        for _, each in DOCUMENT.parameters(operation)
        if DOCUMENT.resolve(each["schema"]).keys() & {"enum", "pattern", "minimum"}
    )
    if place == "path":
        return {"path": operation.template.replace(f"{{{name}}}", ".not-this")}
    return {"query_string": f"{name}=not-this"}


@pytest.mark.parametrize("operation", having(400), ids=str)
def test_what_the_document_does_not_say_is_refused_with_a_pointer(operation: Operation) -> None:
    answer = ask(operation, **wrong(operation))
    assert answer.status_code == 400
    assert answer.json["errors"][0]["pointer"].startswith(("/body", "/path/", "/query/"))


@pytest.mark.parametrize("operation", having(413), ids=str)
def test_a_body_over_the_limit_is_refused(operation: Operation) -> None:
    assert ask(operation, body=b"x" * (BODY_LIMIT + 1)).status_code == 413


@pytest.mark.parametrize("operation", having(415), ids=str)
def test_a_body_of_another_type_is_refused(operation: Operation) -> None:
    assert ask(operation, body=b"x", headers={"Content-Type": "text/x-other"}).status_code == 415
