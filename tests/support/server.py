"""A cache server as a process of its own, started, asked and ended the way an operator would."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.support.polling import until
from tests.support.shm import remove_segments_of

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0

# A proxy of the environment would never reach a loopback port.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A loopback port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def http(
    method: str, url: str, body: bytes | None = None, timeout: float = 10.0, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Status and JSON body of one request; an error status is an answer, not an exception."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    try:
        with _opener.open(request, timeout=timeout) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read())


class ServerProcess:
    """Start, ready, stop: the part that does not depend on whose server it is.

    A subclass says how to start it (``command``), when it is ready (``is_ready``), and what it is called.
    """

    name = ""
    health_path = "/api/healthcheck"

    def __init__(self, *flags: str, l1_size_gb: float = 0.25) -> None:
        self.flags = flags
        self.l1_size_gb = l1_size_gb
        self.port = 0
        self.http_port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="kvkeep-server-")
        self._log = Path(self._folder.name) / "output.log"

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        """A folder for this server's files; it goes with the server."""
        return Path(self._folder.name)

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server was not started"
        return self.process.pid

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def output(self) -> str:
        """Everything the process wrote so far."""
        return self._log.read_text(errors="replace")

    def spawn(self) -> Self:
        """Start the process and return at once."""
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=ROOT, env=self.environment(), stdout=log, stderr=subprocess.STDOUT
            )
        return self

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONUNBUFFERED": "1"}

    def start(self) -> Self:
        """Start the process and return once it is ready."""
        self.spawn()
        try:
            until(self._ready_or_dead, f"{self.name} ready", START_TIMEOUT)
        except AssertionError as late:
            self.kill()
            raise AssertionError(f"{late}\n{self.output()[-4000:]}") from None
        return self

    def _ready_or_dead(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}")
        return self.is_ready()

    def stop(self) -> int:
        """End the process as an operator would, and return its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """End the process without giving it a chance to say anything."""
        return self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        try:
            return self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"{self.name} ignored signal {number}\n{self.output()[-4000:]}") from None
        finally:
            self.process.wait()
            remove_segments_of(self.pid)

    def restart(self, *, gently: bool = True) -> Self:
        """A new process on the ports of the old one; its cache is empty."""
        self.stop() if gently else self.kill()
        return self.start()

    def get(self, path: str) -> tuple[int, Any]:
        return http("GET", self.http_url + path)

    def post(self, path: str, body: bytes = b"") -> tuple[int, Any]:
        return http("POST", self.http_url + path, body)

    def seconds_to(self, path: str, since: float, timeout: float = START_TIMEOUT) -> float:
        """Seconds from ``since`` (``time.monotonic``) to the first 200 of ``path``; the ports must be fixed."""
        until(lambda: self._answers(path), f"200 of {path}", timeout)
        return time.monotonic() - since

    def _answers(self, path: str) -> bool:
        try:
            return http("GET", self.http_url + path, timeout=1.0)[0] == 200
        except OSError:
            return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()


class Server(ServerProcess):
    """kvkeep from this checkout, on free loopback ports; a restart keeps the ports of the first start."""

    name = "kvkeep"
    _ready = re.compile(r"^kvkeep ready tcp://\S+:(\d+) http://\S+:(\d+)$", re.MULTILINE)

    def command(self) -> list[str]:
        size = ["--l1-size-gb", str(self.l1_size_gb)]
        ports = ["--port", str(self.port), "--http-port", str(self.http_port)]
        return [sys.executable, "-m", "service", *size, *ports, *self.flags]

    def is_ready(self) -> bool:
        found = self._ready.search(self.output())
        if found is None:
            return False
        self.port, self.http_port = int(found[1]), int(found[2])
        return True


class Spawned(Server):
    """A server on a known HTTP port, to be asked before it is ready; waited for by hand."""

    def __init__(self, *flags: str) -> None:
        super().__init__(*flags)
        self.http_port = free_port()

    def __enter__(self) -> Spawned:
        return self.spawn()
