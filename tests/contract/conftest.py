"""The real server that the contract tests talk to, with its answers held against the document."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server


class CheckedServer(Server):
    """kvkeep as `python -m service` starts it, plus the check of its answers."""

    def command(self) -> list[str]:
        arguments = super().command()
        assert arguments[:3] == [sys.executable, "-m", "service"]
        return [sys.executable, "-m", "tests.contract.launch", *arguments[3:]]


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that says nothing, so that there is one to reload."""
    file = tmp_path_factory.mktemp("config") / "kvkeep.yaml"
    file.write_text("# every setting at its default\n")
    return file


@pytest.fixture(scope="session")
def server(config_file: Path) -> Iterator[Server]:
    with Server("--config", str(config_file)) as running:
        yield running


@pytest.fixture(scope="session")
def checked_server(config_file: Path) -> Iterator[Server]:
    with CheckedServer("--config", str(config_file)) as running:
        yield running
