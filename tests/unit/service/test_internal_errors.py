"""Whatever breaks inside, the answer tells nothing of the inside."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
from falcon.testing import TestClient

import service.app
from service import assets
from service.app import create_app
from service.context import Context
from service.discovery import Found, Route, discover
from service.document import Document, Operation
from tests.support.example_requests import example_request
from tests.support.fake_engine import FakeEngine

DOCUMENT = Document.load(assets.openapi_path())
INSIDE = ("Traceback", "RuntimeError", "geheim", "/home/", ".py", "line ", "File ", "service.", "engine.")


class Broken:
    """A resource with the responders of another one, all of which fail."""

    def __init__(self, route: Route) -> None:
        for method, _ in route.responders():
            name = f"on_{method.lower()}"
            setattr(self, name, failing(getattr(route.resource, name)))


def failing(responder: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(responder)
    def fail(req: Any, resp: Any, **params: Any) -> None:
        raise RuntimeError("geheim in /home/somebody/secrets.py")

    return fail


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Every operation, broken behind all that stands in front of it."""

    def broken(package: str, context: Context) -> Found:
        found = discover(package, context)
        found.routes = [Route(route.module, route.template, Broken(route)) for route in found.routes]
        return found

    monkeypatch.setattr(service.app, "discover", broken)
    return TestClient(create_app(Context(FakeEngine, DOCUMENT), validate_responses=True))


@pytest.mark.parametrize("operation", list(DOCUMENT.operations()), ids=str)
def test_a_500_shows_nothing_of_the_inside(client: TestClient, operation: Operation) -> None:
    example = example_request(DOCUMENT, operation)
    answer = client.simulate_request(
        example.method, example.path, query_string=example.query, headers=example.headers, body=example.body
    )
    assert answer.status_code == 500
    assert answer.json == {
        "type": "urn:kvkeep:problem:internal-server-error",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "the request could not be carried out; the server's log tells why under this request id",
        "request_id": answer.headers["x-request-id"],
    }
    shown = answer.text + json.dumps(dict(answer.headers))
    assert [word for word in INSIDE if word in shown] == []
