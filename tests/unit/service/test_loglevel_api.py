"""Which lines the log has, asked and changed over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from falcon.testing import TestClient

from service import assets
from service.app import create_app
from service.context import Context
from service.document import Document
from service.logs import LEVELS, LOGGERS, Logs
from tests.support.fake_engine import FakeEngine

DOCUMENT = Document.load(assets.openapi_path())


class Nowhere:
    """A stream whose lines nobody reads."""

    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


@pytest.fixture
def client() -> Iterator[TestClient]:
    logs = Logs()
    with logs.written(Nowhere(), "auto"):  # type: ignore[arg-type]
        yield TestClient(create_app(Context(FakeEngine, DOCUMENT, logs=logs), validate_responses=True))


def test_the_level_in_force_is_shown(client: TestClient) -> None:
    assert client.simulate_get("/api/loglevel").json == {"level": "info", "loggers": {}}


def test_the_level_of_all_is_changed(client: TestClient) -> None:
    changed = client.simulate_put("/api/loglevel", json={"level": "debug"})
    assert (changed.status_code, changed.json) == (200, {"logger": "root", "old_level": "info", "level": "debug"})
    assert logging.getLogger().level == logging.DEBUG
    assert client.simulate_get("/api/loglevel").json == {"level": "debug", "loggers": {}}


def test_the_level_of_one_is_changed(client: TestClient) -> None:
    changed = client.simulate_put("/api/loglevel", json={"level": "error", "logger": "engine"})
    assert changed.json == {"logger": "engine", "old_level": "info", "level": "error"}
    assert logging.getLogger("engine").level == logging.ERROR
    assert client.simulate_get("/api/loglevel").json == {"level": "info", "loggers": {"engine": "error"}}


def test_the_document_and_the_configuration_have_the_same_levels_and_loggers() -> None:
    schemas = DOCUMENT.content["components"]["schemas"]
    assert schemas["LogLevel"]["enum"] == [*LEVELS]
    assert schemas["Logger"]["enum"] == [*LOGGERS]
    assert [*schemas["LogLevels"]["properties"]["loggers"]["properties"]] == [*LOGGERS[1:]]


@pytest.mark.parametrize(
    "body", [{}, {"level": "DEBUG"}, {"level": "debug", "logger": "kvkeep.audit"}, {"level": "debug", "loger": "root"}]
)
def test_what_is_none_of_them_changes_nothing(client: TestClient, body: dict[str, str]) -> None:
    assert client.simulate_put("/api/loglevel", json=body).status_code == 400
    assert client.simulate_get("/api/loglevel").json == {"level": "info", "loggers": {}}


def test_reading_never_writes(client: TestClient) -> None:
    client.simulate_get("/api/loglevel", query_string="level=debug", json={"level": "debug"})
    assert client.simulate_get("/api/loglevel").json == {"level": "info", "loggers": {}}


def test_a_body_of_another_type_is_415(client: TestClient) -> None:
    for media_type in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {"Content-Type": media_type} if media_type else {}
        refused = client.simulate_put("/api/loglevel", body='{"level": "debug"}', headers=headers)
        assert (refused.status_code, refused.json["detail"]) == (415, "the body may be application/json")
