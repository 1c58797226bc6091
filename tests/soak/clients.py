"""A process with several clients: `python -m tests.soak.clients URL SEED NUMBER COUNT`.

It writes a line of JSON a second with what was counted, and one for a promise that was broken, which ends it. It lets
its clients end their lives when its standard input is closed.
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
from typing import Any

import zmq

from tests.soak.client import Client
from tests.soak.wire import Tally, WrongError

REPORT_SECONDS = 1.0
BROKEN = 3


class Process:
    """Runs the clients."""

    def __init__(self, url: str, seed: int, number: int, count: int) -> None:
        self._tally = Tally()
        self._stop = threading.Event()
        self._failed = threading.Event()
        self._lock = threading.Lock()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        numbers = range(number * count, (number + 1) * count)
        clients = [Client(each, seed, url, context, self._tally, self._stop) for each in numbers]
        # NOTE: Daemons, since one that has failed must not wait for the others.
        self._threads = [threading.Thread(target=self._run, args=(client,), daemon=True) for client in clients]

    def run(self) -> int:
        threading.Thread(target=self._await_end, daemon=True).start()
        for thread in self._threads:
            thread.start()
        while any(thread.is_alive() for thread in self._threads) and not self._failed.wait(REPORT_SECONDS):
            self._report()
        self._report()
        return BROKEN if self._failed.is_set() else 0

    def _await_end(self) -> None:
        sys.stdin.read()
        self._stop.set()

    def _run(self, client: Client) -> None:
        try:
            client.run()
        except WrongError as wrong:
            self._tell({"broken": str(wrong), "model": client.model.name, "events": client.diary.lines()})
            self._failed.set()
        except Exception:
            self._tell({"broken": traceback.format_exc(), "model": client.model.name, "events": client.diary.lines()})
            self._failed.set()

    def _report(self) -> None:
        self._tell({"counts": self._tally.take(), "slowest": self._tally.slowest})

    def _tell(self, what: dict[str, Any]) -> None:
        with self._lock:
            print(json.dumps(what), flush=True)


if __name__ == "__main__":
    url, *numbers = sys.argv[1:]
    sys.exit(Process(url, *map(int, numbers)).run())
