"""Workloads and servers of the tests in this folder, as processes that are killed, stopped and waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.support.polling import until
from tests.support.server import ROOT, Server
from tests.support.shm import remove_segments_of, segments_of

WORKER_TIMEOUT = 1.0
COMES_BACK = WORKER_TIMEOUT + 4.0
"""Seconds after which nothing of a killed worker may be left: its time, two ticks of the engine, and a slow machine."""


class Running:
    """A workload."""

    def __init__(self, url: str, mode: str, seed: int, step: str = "") -> None:
        command = [sys.executable, "-m", "tests.faults.workload", url, mode, str(seed), *([step] if step else [])]
        self.mode = mode
        self.step = step or "running"
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin(self) -> Self:
        """Lets it go as far as it was told."""
        self.say()
        assert self.line() == self.step, self.process.communicate()[1]
        return self

    def say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        if number is signal.SIGSTOP:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def kill(self) -> None:
        """Fails if it has ended by itself before, as it does when it finds a wrong byte."""
        ended = self.process.poll()
        self.process.kill()
        complaint = self.process.communicate(timeout=20)[1]
        assert ended is None, f"a workload has ended by itself with {ended}: {complaint[-2000:]}"

    @property
    def segments(self) -> list[Path]:
        return segments_of(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)
        remove_segments_of(self.pid)


def flags(folder: Path, text: str = "", size: str = "4MiB", **liveness: float) -> list[str]:
    """For a server that soon takes the silent for gone. `text`: further lines of its configuration."""
    times = {"worker_timeout": WORKER_TIMEOUT, "registration_grace": WORKER_TIMEOUT, **liveness}
    keys = ", ".join(f"{name}: {value}" for name, value in times.items())
    file = folder / "kvkeep.yaml"
    file.write_text(f"server: {{chunk_size: 16, {keys}}}\nl1: {{size: {size}}}\n{text}")
    return ["--config", str(file)]


def server_with(folder: Path, text: str = "", size: str = "4MiB", **liveness: float) -> Server:
    """Such a server, not started yet."""
    return PlainServer(*flags(folder, text, size, **liveness))


class PlainServer(Server):
    """One whose L1 is as its file says."""

    def command(self) -> list[str]:
        command = super().command()
        at = command.index("--l1-size-gb")
        return [*command[:at], *command[at + 2 :]]

    def raised(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def l1(server: Server) -> dict[str, Any]:
    """What the server says of L1."""
    status, body = server.get("/api/status")
    assert status == 200, body
    return dict(body["storage_manager"]["l1_manager"])


def workers(server: Server) -> list[dict[str, Any]]:
    return list(server.get("/api/workers")[1]["workers"])


def until_nobody_is_there(server: Server, timeout: float = COMES_BACK) -> None:
    """Every worker is taken for gone, and nothing is lent or leased any more."""
    until(lambda: not workers(server), "no worker is known", timeout)
    until(lambda: not l1(server)["leased_object_count"], "nothing is promised to anybody", timeout)
    assert l1(server)["reserved_object_count"] == 0
