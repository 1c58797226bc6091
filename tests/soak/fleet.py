"""The processes of the clients: started, listened to, killed, sent home."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

from tests.support.server import ROOT
from tests.support.shm import remove_segments_of

PROCESSES, CLIENTS = 10, 5
HOME_SECONDS = 60.0
"""For a client to end its life: each of its requests is answered within 20 s."""


class Fleet:
    """`PROCESSES` processes of `CLIENTS` clients each. `kill` and `check` may come from two threads."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._seed = seed
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._listeners: list[threading.Thread] = []
        self._lock = threading.Lock()
        """Guards what clients say."""
        self._changing = threading.Lock()
        """Held while a process is killed and another takes its place."""
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0
        self.pids: list[int] = []
        """Of all that ever ran."""
        self.broken: list[dict[str, Any]] = []
        """What clients have found."""

    def start(self) -> None:
        for number in range(PROCESSES):
            self._start(number)

    def kill(self, number: int) -> None:
        """Ends one in the middle of whatever it does, and starts another in its place."""
        with self._changing:
            _kill(self._running.pop(number))
            self._start(number)

    def go_home(self) -> None:
        """All clients end their lives."""
        for process in self._running.values():
            assert process.stdin is not None
            process.stdin.close()
        for process in self._running.values():
            try:
                code = process.wait(HOME_SECONDS)
            except subprocess.TimeoutExpired:
                code = -1
                self.broken.append({"broken": f"client process {process.pid} does not end", "events": []})
                _kill(process)
            if code and not self.broken:
                self.broken.append({"broken": f"client process {process.pid} ended with {code}", "events": []})
        self._forget()

    def end(self) -> None:
        """At once, whatever they do."""
        for process in self._running.values():
            _kill(process)
        self._forget()

    def check(self) -> None:
        """Notes a process that has ended by itself."""
        with self._changing:
            ended = [process.pid for process in self._running.values() if process.poll() is not None]
        if ended and not self.broken:
            self.broken.append({"broken": f"client process {ended[0]} ended", "events": []})

    def _forget(self) -> None:
        for listener in self._listeners:
            listener.join()
        self._listeners, self._running = [], {}

    def _start(self, number: int) -> None:
        command = [sys.executable, "-m", "tests.soak.clients", self._url, str(self._seed), str(number), str(CLIENTS)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._running[number] = process
        self.pids.append(process.pid)
        listener = threading.Thread(target=self._listen, args=(process,))
        listener.start()
        self._listeners.append(listener)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                # NOTE: The last line of one that was killed may be a part.
                if line.endswith(b"\n"):
                    self._hear(json.loads(line))

    def _hear(self, said: dict[str, Any]) -> None:
        with self._lock:
            if "broken" in said:
                self.broken.append(said)
            else:
                self.counts.update(said["counts"])
                self.slowest = max(self.slowest, said["slowest"])


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends it, and removes the names of its memory, which it cannot do any more."""
    assert process.stdin is not None
    process.kill()
    process.wait()
    process.stdin.close()
    remove_segments_of(process.pid)
