"""The whole document, every check, generated requests: against a real server, and against states hard to reach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import schemathesis
from falcon.testing import TestClient
from hypothesis import HealthCheck, settings

from service import assets
from service.app import create_app
from service.document import Document
from tests.support.configuration import reloadable
from tests.support.example_requests import example_request
from tests.support.fake_engine import (
    UNHEALTHY,
    WITHOUT_L2,
    BusyEngine,
    FakeEngine,
    UnsureEngine,
    context,
    stopped,
    stuck,
)
from tests.support.server import Server

DOCUMENT = Document.load(assets.openapi_path())
STANDING_BEFORE = {400, 401, 403, 413, 415, 500}
"""What stands before the responders: test_access.py reaches 401 and 403 of each operation, test_middleware.py 400, 413
and 415, and the unit tests 500."""
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

# NOTE: Loaded here rather than by a fixture; schemathesis's fixtures and pytest 9 do not go together.
real = schemathesis.openapi.from_path(assets.openapi_path())


def over(engine: FakeEngine | None):
    """The document, served in this process over an engine in one state, answers checked."""
    app = create_app(context(engine), validate_responses=True)
    schema = schemathesis.openapi.from_dict(DOCUMENT.content)
    schema.app = app
    return schema


def as_documented(case: schemathesis.Case) -> None:
    """Every check but the one that takes the documented 503 for a failure; a 500 stays one."""
    response = case.call()
    case.validate_response(response, excluded_checks=[schemathesis.checks.not_a_server_error])
    assert response.status_code != 500


not_ready = over(None)
with_workers = over(FakeEngine())
unhealthy = over(FakeEngine(UNHEALTHY))
ended = over(stopped())
slow = over(stuck())


@real.parametrize()
@settings(max_examples=50, deadline=None, suppress_health_check=SUPPRESSED)
def test_a_ready_server_is_as_documented(case: schemathesis.Case, server: Server) -> None:
    case.call_and_validate(base_url=server.http_url)


@real.parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=SUPPRESSED)
def test_a_server_that_checks_its_answers_finds_nothing(case: schemathesis.Case, checked_server: Server) -> None:
    case.call_and_validate(base_url=checked_server.http_url)


@not_ready.parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=SUPPRESSED)
def test_a_server_whose_engine_is_not_ready_is_as_documented(case: schemathesis.Case) -> None:
    as_documented(case)


@with_workers.parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=SUPPRESSED)
def test_a_server_with_workers_is_as_documented(case: schemathesis.Case) -> None:
    as_documented(case)


@unhealthy.parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=SUPPRESSED)
def test_an_unhealthy_server_is_as_documented(case: schemathesis.Case) -> None:
    as_documented(case)


@ended.parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=SUPPRESSED)
def test_a_server_whose_engine_has_ended_is_as_documented(case: schemathesis.Case) -> None:
    as_documented(case)


@slow.parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=SUPPRESSED)
def test_a_server_whose_engine_does_not_answer_is_as_documented(case: schemathesis.Case) -> None:
    as_documented(case)


def test_links_lead_where_the_document_says(server: Server) -> None:
    """Pages to their next pages, jobs to themselves: on a real server, and where there are always more of both."""
    steps = settings(max_examples=30, stateful_step_count=6, deadline=None, suppress_health_check=SUPPRESSED)
    on_server = schemathesis.openapi.from_path(assets.openapi_path())
    on_server.config.update(base_url=server.http_url)
    on_server.as_state_machine().run(settings=steps)
    over(BusyEngine()).as_state_machine().run(settings=steps)


@pytest.mark.parametrize("operation", list(DOCUMENT.operations()), ids=str)
def test_the_states_above_reach_every_status_that_a_responder_declares(operation, tmp_path: Path) -> None:
    """The runs above are worth what they reach: 200 and 503 of every operation that has both."""
    reporting = (FakeEngine(), FakeEngine(UNHEALTHY), FakeEngine(WITHOUT_L2))
    engines = (None, *reporting, stopped(), stuck(), BusyEngine(), UnsureEngine())
    states = [context(engine) for engine in engines]
    states += [replace(context(FakeEngine()), config=config) for config in reloadable(tmp_path)]
    reached = set()
    for state in states:
        client = TestClient(create_app(state, validate_responses=True))
        asked = example_request(DOCUMENT, operation)
        answer = client.simulate_request(
            asked.method, asked.path, query_string=asked.query, headers=asked.headers, body=asked.body
        )
        reached.add(answer.status_code)
    assert reached == {int(status) for status in operation.spec["responses"]} - STANDING_BEFORE
