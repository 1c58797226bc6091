"""Asks an HTTP server at a fixed rate over connections that stay open, in a process of its own."""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

CONNECTIONS = 4


@dataclass
class Load:
    """What a load came to, once it has ended."""

    requests: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


@contextmanager
def load(url: str, paths: Sequence[str], rate: float) -> Iterator[Load]:
    """Asks for the paths in turn, `rate` times a second (0: as often as it can), until the block ends."""
    command = [sys.executable, "-m", "tests.benchmarks.http_load", url, str(rate), *paths]
    seen = Load()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "asking\n", "the load does not start"
        try:
            yield seen
        finally:
            process.stdin.close()
            seen.requests, seen.seconds = json.loads(process.stdout.read())


class Connection:
    """One connection that asks and waits for the answer, again and again."""

    def __init__(self, host: str, port: int, paths: Sequence[str]) -> None:
        self._socket = socket.create_connection((host, port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = itertools.cycle([f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() for path in paths])
        self.answers = 0

    def ask(self) -> None:
        self._socket.sendall(next(self._requests))
        answer = self._socket.recv(1 << 18)
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]
        while (body := answer.find(b"\r\n\r\n") + 4) < 4:
            answer += self._socket.recv(1 << 18)
        left = body + _length(answer[:body]) - len(answer)
        while left:
            left -= len(self._socket.recv(left))
        self.answers += 1


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


def _keep_asking(connection: Connection, interval: float, first: float, stop: threading.Event) -> None:
    """Asks on time; what is late is asked at once, and does not make the next one late."""
    due = first
    while not stop.wait(max(0.0, due - time.monotonic())):
        connection.ask()
        due = due + interval if interval else time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("rate", type=float)
    parser.add_argument("paths", nargs="+")
    asked = parser.parse_args()
    address = urlsplit(asked.url)
    connections = [Connection(address.hostname or "", address.port or 80, asked.paths) for _ in range(CONNECTIONS)]
    interval, stop, began = CONNECTIONS / asked.rate if asked.rate else 0.0, threading.Event(), time.monotonic()
    threads = [
        threading.Thread(
            target=_keep_asking, args=(connection, interval, began + number * interval / CONNECTIONS, stop)
        )
        for number, connection in enumerate(connections)
    ]
    for thread in threads:
        thread.start()
    print("asking", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps([sum(each.answers for each in connections), time.monotonic() - began]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
