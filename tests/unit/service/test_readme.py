"""The README's example of an endpoint, word for word: refused without its operation, served with it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from falcon.testing import TestClient

from service import assets
from service.app import create_app
from service.context import Context
from service.contract import ContractError
from service.document import Document

README = Path(__file__).parents[3] / "README.md"


def example(language: str) -> str:
    """The section's block in a language."""
    section = README.read_text().partition("## Add an endpoint\n")[2].partition("\n## ")[0]
    [found] = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return found


@pytest.fixture
def resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package with nothing but the example in it."""
    package = tmp_path / "readme_resources"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "uptime_api.py").write_text(example("python"))
    monkeypatch.syspath_prepend(tmp_path)
    yield package.name
    for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
        del sys.modules[name]


def document(paths: dict[str, Any]) -> Document:
    """The real document with other paths."""
    return Document({**Document.load(assets.openapi_path()).content, "paths": paths})


def test_the_example_is_refused_without_its_operation(resources: str) -> None:
    with pytest.raises(ContractError, match=r"getUptime is served there, but openapi\.yaml has no such operation"):
        create_app(Context(lambda: None, document({})), resources=resources)


def test_the_operation_is_refused_without_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_resources").mkdir()
    (tmp_path / "no_resources" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ContractError, match=r"GET /api/uptime: in openapi\.yaml, but no resource serves it"):
        create_app(Context(lambda: None, document(yaml.safe_load(example("yaml")))), resources="no_resources")


def test_the_example_is_served_with_its_operation(resources: str) -> None:
    described = document(yaml.safe_load(example("yaml")))
    client = TestClient(create_app(Context(lambda: None, described), resources=resources, validate_responses=True))
    result = client.simulate_get("/api/uptime")
    assert result.status_code == 200
    assert result.json["seconds"] >= 0


def test_the_example_is_no_operation_yet() -> None:
    assert not {*yaml.safe_load(example("yaml"))} & {*Document.load(assets.openapi_path()).content["paths"]}
