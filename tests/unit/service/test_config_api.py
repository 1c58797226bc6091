"""The configuration's operations over every outcome; answers are held against the document all the while."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
from falcon.testing import Result, TestClient

from engine import EngineStoppedError
from service import __version__, assets
from service.app import create_app
from service.config_view import setting_rows
from service.configuration import Configuration
from service.context import Context
from service.document import Document
from service.problems import DEFAULT, MASK
from service.settings import Setting
from tests.support.configuration import SCHEMA, TunedEngine, configuration
from tests.support.fake_engine import FakeEngine

DOCUMENT = Document.load(assets.openapi_path())


def client(config: Configuration) -> TestClient:
    return TestClient(create_app(Context(FakeEngine, DOCUMENT, config=config), validate_responses=True))


def reload(config: Configuration, **body: object) -> Result:
    sent = {"json": body} if body else {}
    return client(config).simulate_post("/api/config/reload", **sent)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kvkeep.yaml"
    path.write_text("l1: {size: 2GiB}\n")
    return path


def test_every_setting_is_shown_with_value_origin_and_meaning(file: Path) -> None:
    body = client(configuration(file, None)).simulate_get("/api/config").json
    assert body["file"] == str(file)
    rows = {each["setting"]: each for each in body["settings"]}
    assert rows["l1.size"] == {
        "setting": "l1.size",
        "value": "2GiB",
        "is_masked": False,
        "origin": f"{file}:1",
        "is_live": True,
        "description": SCHEMA["properties"]["l1"]["properties"]["size"]["description"],
    }
    assert (rows["server.port"]["origin"], rows["server.port"]["is_live"]) == ("default", False)
    assert rows["l2"]["value"] == []
    assert body["last_reload"]["trigger"] == "start"
    assert body["last_reload"]["at"].endswith("Z")
    assert body["pending_restart"] == []


def test_the_order_of_settings_is_the_schemas() -> None:
    shown = [each["setting"] for each in client(configuration(None, None)).simulate_get("/api/config").json["settings"]]
    sections = SCHEMA["properties"]
    expected = [f"{s}.{name}" for s in sections for name in sections[s].get("properties", {})]
    assert shown == [*expected, "l2"]


def test_values_of_the_environment_are_not_shown(file: Path) -> None:
    file.write_text("http: {host: '${WHERE}'}\n")
    config = configuration(file, TunedEngine(), environ={"WHERE": "hunter2"})
    result = client(config).simulate_get("/api/config")
    assert "hunter2" not in result.text
    [row] = [each for each in result.json["settings"] if each["setting"] == "http.host"]
    assert (row["value"], row["is_masked"], row["origin"]) == (MASK, True, f"environment WHERE ({file}:1)")


def test_the_meaning_of_a_lists_entry_is_its_own(file: Path) -> None:
    [row] = setting_rows(SCHEMA, [Setting(("l2", 0, "type"), "fs", DEFAULT)])
    assert (row["setting"], row["description"]) == ("l2[0].type", "Which adapter.")


def test_a_reload_without_a_body_applies(file: Path) -> None:
    engine = TunedEngine()
    config = configuration(file, engine)
    file.write_text("l1:\n  size: 3GiB\n")
    change = {"setting": "l1.size", "old": "2GiB", "new": "3GiB", "origin": f"{file}:2", "is_live": True}
    result = reload(config)
    assert result.status_code == 200
    assert result.json == {"applied": True, "dry_run": False, "changes": [{**change, "reason": None}]}
    assert len(engine.calls) == 1
    shown = client(config).simulate_get("/api/config").json
    assert "3GiB" in [each["value"] for each in shown["settings"]]
    assert shown["last_reload"]["outcome"] == "applied"


@pytest.mark.parametrize(("body", "calls"), [({"dry_run": True}, 0), ({"dry_run": False}, 1)])
def test_a_dry_run_only_tells(file: Path, body: dict[str, object], calls: int) -> None:
    engine = TunedEngine()
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB}\n")
    result = reload(config, **body)
    assert (result.status_code, result.json["applied"]) == (200, not body["dry_run"])
    assert (len(result.json["changes"]), len(engine.calls)) == (1, calls)


def test_a_restart_that_is_needed_is_a_conflict_with_every_change(file: Path) -> None:
    config = configuration(file, TunedEngine())
    file.write_text("l1: {size: 3GiB}\nserver: {port: 1}\n")
    result = reload(config)
    assert result.status_code == 409
    assert "server.port is read at the start only" in result.json["detail"]
    assert {each["setting"]: each["is_live"] for each in result.json["changes"]} == {
        "l1.size": True,
        "server.port": False,
    }
    shown = client(config).simulate_get("/api/config").json
    assert shown["pending_restart"] == result.json["changes"]
    assert "3GiB" not in [each["value"] for each in shown["settings"]]


def test_an_invalid_file_is_told_problem_by_problem(file: Path) -> None:
    config = configuration(file, TunedEngine())
    file.write_text("l1:\n  sise: 3GiB\nserver:\n  port: x\n")
    result = reload(config)
    assert result.status_code == 422
    assert sorted(result.json["errors"], key=lambda each: each["place"]) == [
        {"place": f"{file}:2", "setting": "l1.sise", "message": 'unknown key, did you mean "size"?'},
        {"place": f"{file}:4", "setting": "server.port", "message": "must be a whole number"},
    ]
    assert result.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_invalid_file_is_told_by_a_dry_run_too(file: Path, dry_run: bool) -> None:
    config = configuration(file, TunedEngine())
    file.write_text("l1: [\n")
    assert reload(config, dry_run=dry_run).status_code == 422


def test_a_change_that_fails_is_a_conflict_that_says_why(file: Path) -> None:
    engine = TunedEngine()
    engine.refuse("resize_l1", "no room in /dev/shm")
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB}\n")
    result = reload(config)
    assert (result.status_code, result.json["detail"]) == (
        409,
        "l1.size could not be changed: no room in /dev/shm",
    )


def test_an_engine_that_ends_meanwhile_is_unavailable(file: Path) -> None:
    engine = TunedEngine()
    engine.refusals["resize_l1"] = EngineStoppedError("the engine is stopping")
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB}\n")
    assert reload(config).status_code == 503


def test_without_an_engine_it_is_unavailable(file: Path) -> None:
    result = reload(configuration(file, None))
    assert (result.status_code, result.json["detail"]) == (503, "engine not initialized")


def test_without_a_file_it_is_a_conflict() -> None:
    result = reload(configuration(None, TunedEngine()))
    assert result.status_code == 409
    assert "started without --config" in result.json["detail"]


@pytest.mark.parametrize("body", [{"dry_run": 1}, {"dry_run": None}, {"dryrun": True}, [], "x"])
def test_a_body_that_is_something_else_is_refused(file: Path, body: object) -> None:
    engine = TunedEngine()
    config = configuration(file, engine)
    file.write_text("l1: {size: 3GiB}\n")
    result = client(config).simulate_post("/api/config/reload", json=body)
    assert (result.status_code, engine.calls) == (400, [])


def test_a_body_of_another_type_is_refused(file: Path) -> None:
    headers = {"Content-Type": "text/plain"}
    asked = client(configuration(file, TunedEngine()))
    assert asked.simulate_post("/api/config/reload", body="{}", headers=headers).status_code == 415


def test_the_version_says_what_runs() -> None:
    body = client(configuration(None, None)).simulate_get("/api/version").json
    assert (body["version"], body["api_version"]) == (__version__, DOCUMENT.content["info"]["version"])
    assert (body["protocol"], body["python"]) == ("LMCache 0.5", platform.python_version())


def test_the_document_is_served_as_it_stands() -> None:
    result = client(configuration(None, None)).simulate_get("/openapi.yaml")
    assert result.content == assets.openapi_path().read_bytes()
    assert result.headers["content-type"] == "application/yaml"


def test_the_document_is_served_as_json_in_the_same_order() -> None:
    served = json.loads(client(configuration(None, None)).simulate_get("/openapi.json").text)
    assert json.dumps(served) == json.dumps(DOCUMENT.content)


def test_the_page_may_load_nothing_but_its_own_style() -> None:
    result = client(configuration(None, None)).simulate_get("/docs")
    assert result.headers["content-type"] == "text/html; charset=utf-8"
    policy = result.headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert [each for each in policy if each.startswith("style-src 'sha256-")] == policy[1:2]
    assert "unsafe" not in result.headers["content-security-policy"]
