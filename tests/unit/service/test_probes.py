"""livez and readyz in every phase; answers are held against the document all the while."""

from __future__ import annotations

import falcon
import pytest
from falcon.testing import Result, TestClient

from engine import EngineError, EngineStoppedError, StartError
from service.allocation import Allocation
from service.app import create_app
from service.context import Context
from service.errors import UnavailableError
from service.lifecycle import Lifecycle
from tests.support.fake_engine import DOCUMENT, PASSING, FakeEngine, failing, lifecycle

LIVEZ, READYZ = "/api/livez", "/api/readyz"
UNAVAILABLE = "urn:kvkeep:problem:service-unavailable"


def client(life: Lifecycle) -> TestClient:
    return TestClient(create_app(Context(life.engine, DOCUMENT, life), validate_responses=True))


def starting() -> Lifecycle:
    life = Lifecycle()
    life.allocated(Allocation(0.25, 5e8, 90.0))
    return life


def failed() -> Lifecycle:
    life = Lifecycle()
    life.fail(StartError("cannot listen on 127.0.0.1:1"))
    return life


def ended() -> Lifecycle:
    life = lifecycle(FakeEngine())
    life.fail(ValueError("a broken invariant"))
    return life


def stopping(engine: FakeEngine | None = None) -> Lifecycle:
    life = lifecycle(engine)
    life.stop()
    return life


def running(name: str | None = None) -> Lifecycle:
    """`name`: the check that fails."""
    return lifecycle(FakeEngine(checks=failing(name, "out of order") if name else PASSING))


def told(result: Result) -> str | None:
    """What fails; None if nothing does."""
    if result.status_code == 200:
        assert result.json == {"status": "ok"}
        return None
    assert result.headers["content-type"] == "application/problem+json"
    assert (result.status_code, result.json["status"], result.json["type"]) == (503, 503, UNAVAILABLE)
    assert set(result.json) == {"type", "title", "status", "detail", "request_id"}
    return str(result.json["detail"])


@pytest.mark.parametrize(
    ("life", "live", "ready"),
    [
        (starting(), None, "starting: engine not initialized"),
        (running(), None, None),
        (running("engine"), "engine: out of order", "engine: out of order"),
        (running("l2.fs"), None, "l2.fs: out of order"),
        (failed(), *["failed: StartError: cannot listen on 127.0.0.1:1"] * 2),
        (ended(), *["failed: ValueError: a broken invariant"] * 2),
        (stopping(), None, "stopping: the server is stopping"),
        (stopping(FakeEngine(checks=failing("engine", "gone"))), None, "stopping: the server is stopping"),
    ],
)
def test_each_probe_answers_what_it_is_asked_for(life: Lifecycle, live: str | None, ready: str | None) -> None:
    asked = client(life)
    assert told(asked.simulate_get(LIVEZ)) == live
    assert told(asked.simulate_get(READYZ)) == ready


@pytest.mark.parametrize("path", [LIVEZ, READYZ])
@pytest.mark.parametrize("query", ["verbose", "verbose=", "verbose=true"])
def test_verbose_lists_every_check(path: str, query: str) -> None:
    body = client(running()).simulate_get(path, query_string=query).json
    assert (body["status"], body["phase"], body["failure"], body["l1_allocated_ratio"]) == ("ok", "running", None, 1.0)
    assert (body["l1_bytes_per_second"], body["l1_seconds_left"]) == (None, None)
    assert body["checks"][1] == {
        "name": "socket",
        "status": "ok",
        "affects": "liveness",
        "detail": None,
        "latency_seconds": 0.0005,
        "age_seconds": 0.1,
    }
    assert [check["name"] for check in body["checks"]] == [check.name for check in PASSING.checks]
    assert body["loops"][2] == {
        "name": "monitor",
        "state": "restarting",
        "beat_age_seconds": 0.1,
        "exceptions": 4,
        "restarts": 3,
        "problem": "KeyError",
    }
    assert [loop["name"] for loop in body["loops"]] == [loop.name for loop in PASSING.loops]


@pytest.mark.parametrize("path", [LIVEZ, READYZ])
def test_without_verbose_nothing_is_listed(path: str) -> None:
    assert client(running()).simulate_get(path, query_string="verbose=false").json == {"status": "ok"}


@pytest.mark.parametrize("path", [LIVEZ, READYZ])
def test_a_failing_probe_lists_as_much(path: str) -> None:
    body = client(running("transfer")).simulate_get(path, query_string="verbose").json
    [check] = [check for check in body["checks"] if check["status"] == "failing"]
    assert (check["name"], check["detail"], body["phase"]) == ("transfer", "out of order", "running")


def test_an_initialisation_is_shown_on_its_way_and_when_it_has_failed() -> None:
    body = client(starting()).simulate_get(READYZ, query_string="verbose").json
    assert (body["phase"], body["l1_allocated_ratio"], body["checks"]) == ("starting", 0.25, [])
    assert (body["l1_bytes_per_second"], body["l1_seconds_left"]) == (5e8, 90.0)
    body = client(failed()).simulate_get(LIVEZ, query_string="verbose").json
    assert (body["phase"], body["failure"]) == ("failed", "StartError: cannot listen on 127.0.0.1:1")


@pytest.mark.parametrize("path", [LIVEZ, READYZ])
@pytest.mark.parametrize("query", ["verbose=yes", "verbose=True", "verbose=1", "verbose=true&verbose=false"])
def test_another_value_is_refused(path: str, query: str) -> None:
    result = client(running()).simulate_get(path, query_string=query)
    assert (result.status_code, result.json["errors"][0]["pointer"]) == (400, "/query/verbose")


@pytest.mark.parametrize("path", [LIVEZ, READYZ])
@pytest.mark.parametrize("life", [running(), failed()])
def test_head_answers_as_get_does(path: str, life: Lifecycle) -> None:
    asked = client(life)
    assert asked.simulate_head(path).status_code == asked.simulate_get(path).status_code


NOT_INITIALIZED = "engine not initialized"


@pytest.mark.parametrize(
    ("life", "reason"),
    [
        (starting(), NOT_INITIALIZED),
        (failed(), NOT_INITIALIZED),
        (ended(), "the engine has ended"),
        (stopping(FakeEngine()), "the server is stopping"),
    ],
)
def test_where_there_is_no_engine_the_operations_say_why(life: Lifecycle, reason: str) -> None:
    asked = client(life)
    assert asked.simulate_get("/api/healthcheck").json == {"status": "unhealthy", "reason": reason}
    assert asked.simulate_get("/api/status").json == {"error": reason}
    assert asked.simulate_post("/api/clear-cache").json == {"status": "error", "reason": reason}


def test_a_failure_is_told_in_a_few_words() -> None:
    life = Lifecycle()
    life.fail(RuntimeError("x" * 10_000))
    assert life.state.failure is not None
    assert len(life.state.failure) == 1000


def test_a_running_engine_is_lent_and_its_refusals_become_problems() -> None:
    life = running()
    with Context(life.engine, DOCUMENT, life).running() as engine:
        assert engine is life.state.engine


@pytest.mark.parametrize(
    ("refusal", "status"), [(EngineStoppedError("it has ended"), 503), (EngineError("a new one"), 500)]
)
def test_a_refusal_within_is_a_problem_of_its_status(refusal: EngineError, status: int) -> None:
    life = running()
    with pytest.raises(falcon.HTTPError) as caught, Context(life.engine, DOCUMENT, life).running():
        raise refusal
    assert (caught.value.status_code, caught.value.description) == (status, str(refusal))


def test_without_an_engine_nothing_is_lent() -> None:
    life = stopping()
    with pytest.raises(UnavailableError) as caught, Context(life.engine, DOCUMENT, life).running():
        raise AssertionError
    assert caught.value.description == "the server is stopping"
