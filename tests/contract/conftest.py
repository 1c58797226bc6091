"""The real server that the contract tests talk to, with its answers held against the document."""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.logs import LOGGERS
from tests.support.server import Server


class CheckedServer(Server):
    """kvkeep as `python -m service` starts it, plus the check of its answers."""

    def command(self) -> list[str]:
        arguments = super().command()
        assert arguments[:3] == [sys.executable, "-m", "service"]
        return [sys.executable, "-m", "tests.contract.launch", *arguments[3:]]


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two tiers of L2, so that there is something to reload and to ask for."""
    file = tmp_path_factory.mktemp("config") / "kvkeep.yaml"
    file.write_text("l2:\n  - type: memory\n  - {type: filesystem, name: nvme, path: kv, keep_free: 0}\n")
    return file


@pytest.fixture(scope="session")
def server(config_file: Path) -> Iterator[Server]:
    with Server("--config", str(config_file)) as running:
        yield running


@pytest.fixture(scope="session")
def checked_server(config_file: Path) -> Iterator[Server]:
    with CheckedServer("--config", str(config_file)) as running:
        yield running


class GuardedServer(Server):
    """kvkeep with one token of each role; not even the probes are open."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = {role: write_token(self.folder, role) for role in ("reader", "operator")}
        config = self.folder / "kvkeep.yaml"
        items = ", ".join(f"{{name: {role}, role: {role}, file: {role}.token}}" for role in self.tokens)
        config.write_text(f"http:\n  open_probes: false\n  tokens: [{items}]\n")
        self.flags = ("--config", str(config))

    def authorization(self, role: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[role]}"}


def write_token(folder: Path, name: str) -> str:
    """A new token in a file that only its owner reads."""
    token, file = secrets.token_urlsafe(32), folder / f"{name}.token"
    file.touch(mode=0o600)
    file.write_text(token)
    return token


@pytest.fixture(scope="session")
def guarded_server() -> Iterator[GuardedServer]:
    with GuardedServer() as running:
        yield running


@pytest.fixture(autouse=True)
def levels_as_before() -> Iterator[None]:
    """Applications in this process change the levels of this process."""
    before = {name: logging.getLogger(name).level for name in (None, *LOGGERS[1:])}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
