"""Datagrams to a real socket, as systemd receives them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket, and the name by which NOTIFY_SOCKET would tell it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@kvkeep-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.settimeout(20)
        made.bind("\0" + name[1:] if name.startswith("@") else name)
        yield made, name


def test_each_message_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("serving")
    notifier.alive()
    notifier.status("half way")
    notifier.stopping("draining")
    assert [receiver.recv(4096) for _ in range(4)] == [
        b"READY=1\nSTATUS=serving",
        b"WATCHDOG=1",
        b"STATUS=half way",
        b"STOPPING=1\nSTATUS=draining",
    ]


def test_a_message_of_several_lines_forges_nothing(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    Notifier({"NOTIFY_SOCKET": name}).status("failed:\nREADY=1")
    assert receiver.recv(4096) == b"STATUS=failed: READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_who_did_not_ask_is_told_nothing(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.systemd.socket.socket", pytest.fail)
    notifier = Notifier({**environ, "WATCHDOG_USEC": "1000000"})
    notifier.ready("serving")
    notifier.alive()
    notifier.stopping("stopping")
    assert notifier.watchdog_interval is None


def test_a_manager_that_is_gone_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("serving")
    assert "systemd could not be told READY=1: " in caplog.text


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_told_twice_as_often_as_it_waits(environ: dict[str, str], interval: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/nowhere", **environ}).watchdog_interval == interval
