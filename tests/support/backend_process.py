"""A storage server as a process of its own, for tests that stop, pause and kill it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.support.polling import until

START_TIMEOUT = 40.0
STOP_TIMEOUT = 20.0
LIFETIME = 900
"""Seconds after which a server ends by itself, whatever became of the tests."""


class BackendProcess:
    """Start, pause, kill, start again. A subclass says how to start it and when it is ready.

    It keeps its ports and its folder, so that it comes back as the server that it was.
    """

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._wrapped = 0

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [_program("timeout"), "--signal=KILL", str(LIFETIME), *self.command()],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        try:
            self._wrapped = until(self._child, f"{self.name} begins", START_TIMEOUT)
            until(self._is_ready_or_dead, f"{self.name} is ready; see {self._log}", START_TIMEOUT)
        except BaseException:
            self.kill()
            raise
        return self

    def pause(self) -> None:
        """Returns when all its threads have stopped."""
        os.kill(self._wrapped, signal.SIGSTOP)
        until(self._is_stopped, f"{self.name} has stopped")

    def resume(self) -> None:
        os.kill(self._wrapped, signal.SIGCONT)

    def kill(self) -> None:
        """Ends it at once; a second call does nothing."""
        process = self._process
        if process is None:
            return
        self._process = None
        if process.poll() is None:
            os.kill(self._wrapped or process.pid, signal.SIGKILL)
        process.wait(STOP_TIMEOUT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _child(self) -> int:
        """The server itself, below the one that bounds its time; 0 if there is none yet."""
        assert self._process is not None
        self._fail_if_dead()
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def _is_stopped(self) -> bool:
        states = [
            stat.read_text().rpartition(") ")[2][0] for stat in Path(f"/proc/{self._wrapped}/task").glob("*/stat")
        ]
        return set(states) == {"T"}

    def _is_ready_or_dead(self) -> bool:
        self._fail_if_dead()
        return self.is_ready()

    def _fail_if_dead(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise AssertionError(f"{self.name} ended at its start:\n{self._log.read_text()[-2000:]}")


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_ports(count: int, twin: int = 0) -> list[int]:
    """Loopback ports that nobody listens on, and if `twin` is given not on those so much higher either."""
    found: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(found) < count:
            probe = socket.socket()
            held.append(probe)
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            if not twin or (port + twin < 1 << 16 and _holds(port + twin, held)):
                found.append(port)
    finally:
        for probe in held:
            probe.close()
    return found


def _holds(port: int, held: list[socket.socket]) -> bool:
    probe = socket.socket()
    held.append(probe)
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is not installed"
    return found
