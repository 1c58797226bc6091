"""The real server that the contract tests talk to, with its answers held against the document."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support.server import Server


class CheckedServer(Server):
    """kvkeep as `python -m service` starts it, plus the check of its answers."""

    def command(self) -> list[str]:
        arguments = super().command()
        assert arguments[:3] == [sys.executable, "-m", "service"]
        return [sys.executable, "-m", "tests.contract.launch", *arguments[3:]]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(scope="session")
def checked_server() -> Iterator[Server]:
    with CheckedServer() as running:
        yield running
