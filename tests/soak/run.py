"""The soak from its start to its end."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from tests.soak.bench import MIB, SESSION_TTL, Configurator, Resources, SoakServer, Storages
from tests.soak.fleet import CLIENTS, PROCESSES, Fleet
from tests.soak.havoc import Havoc
from tests.soak.stored import Found, check_storages
from tests.soak.workers import WORKER_TIMEOUT

WARM_UP: Final = 0.2
"""The part of the time after which everybody is sent home for the first time, a minute at most. If that was not enough
for `WARM_TURNS` on a slow machine, it may be up to half of the time."""
WARM_TURNS: Final = 1500
CALM_SECONDS: Final = max(WORKER_TIMEOUT, SESSION_TTL) + 20.0
"""What belongs to the dead ends with the liveness times; the rest is for a machine that is busy with others."""
MARGIN: Final = 24 * MIB
"""By which the server's memory may have grown since the warm-up: tables that are bounded but not full by then, such as
the departed objects, the requests and the connections that are remembered and what the advisor has of the traffic, and
what the allocator keeps of the largest moment. In five minutes it was 7 MiB, most of it in the first two. A leak of 400
bytes, which is one object's, with each of the stores would be more than that in five minutes."""
LINE_SECONDS: Final = 10.0


@dataclass
class Outcome:
    """What came of it."""

    seed: int
    seconds: float
    problems: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    """What led to the first of them."""
    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    fresh: Resources | None = None
    """What the server takes before anybody has come, without L2; then after the warm-up, and at the end."""
    before: Resources | None = None
    after: Resources | None = None
    calm: list[float] = field(default_factory=list)
    """Seconds until nothing was held by anybody, each time that all had gone."""
    memory: list[tuple[float, int]] = field(default_factory=list)
    """While it runs: seconds since the start, and bytes of the server's own memory."""
    stored: dict[str, Found] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self)))


class Soak:
    """One run. `seconds` is all of it, from the first client to the last."""

    def __init__(self, seconds: float, seed: int | None = None) -> None:
        self._seconds = seconds
        self._seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
        self._outcome = Outcome(self._seed, seconds)
        self._began = time.monotonic()
        self._told = self._began

    def run(self) -> Outcome:
        print(f"soak: {PROCESSES * CLIENTS} clients, {self._seconds:g} s, seed {self._seed}", flush=True)
        with tempfile.TemporaryDirectory(prefix="kvkeep-soak-") as name:
            storages = Storages(Path(name))
            configurator = Configurator(Path(name, "kvkeep.yaml"), storages)
            configurator.bare()
            storages.valkey.start()
            try:
                self._run(SoakServer(configurator.file, self._seed), configurator, storages)
            finally:
                storages.valkey.remove()
        return self._outcome

    def _run(self, server: SoakServer, configurator: Configurator, storages: Storages) -> None:
        with server:
            fleet = Fleet(server.url, self._seed)
            havoc = Havoc(server, configurator, storages, fleet, self._seed)
            self._began = time.monotonic()
            self._outcome.fresh = server.resources([])
            try:
                warm_up = min(60.0, WARM_UP * self._seconds)
                self._outcome.before = self._phase(server, configurator, fleet, havoc, warm_up, WARM_TURNS)
                if not self._outcome.problems:
                    end = self._seconds - WORKER_TIMEOUT
                    self._outcome.after = self._phase(server, configurator, fleet, havoc, end)
            finally:
                fleet.end()
            self._end(server, storages)

    def _phase(
        self, server: SoakServer, configurator: Configurator, fleet: Fleet, havoc: Havoc, end: float, turns: int = 0
    ) -> Resources | None:
        """Everything goes on until so many seconds after the start; then all go home, and nothing may be left.

        Unless there have been so many turns by then it goes on, for half of the whole time at most.
        """
        configurator.usual()
        server.ask("POST", "/api/config/reload", {}, CALM_SECONDS)
        fleet.start()
        havoc.start()
        try:
            while not (fleet.broken or havoc.broken) and server.runs:
                passed = time.monotonic() - self._began
                if passed > end and (fleet.counts["turns"] >= turns or passed > self._seconds / 2):
                    break
                time.sleep(0.2)
                fleet.check()
                self._look(server, fleet, havoc)
        finally:
            havoc.stop()
        if not fleet.broken and server.runs:
            fleet.go_home()
        self._collect(fleet, havoc)
        is_well = server.runs and not self._outcome.problems
        return self._calm_down(server, configurator, fleet) if is_well else None

    def _collect(self, fleet: Fleet, havoc: Havoc) -> None:
        outcome = self._outcome
        for found in fleet.broken:
            outcome.problems.append(f"{found.get('model', '')}: {found['broken']}")
            outcome.events = outcome.events or [*found["events"], "", "operators:", *havoc.diary]
        if havoc.broken:
            outcome.problems += havoc.broken
            outcome.events = outcome.events or [*havoc.diary]
        outcome.counts = fleet.counts + havoc.counts
        outcome.statuses = havoc.statuses
        outcome.slowest = fleet.slowest

    def _calm_down(self, server: SoakServer, configurator: Configurator, fleet: Fleet) -> Resources | None:
        """Waits until nobody holds anything, looks through the server, and measures what it takes."""
        began = time.monotonic()
        pins = server.ask("GET", "/api/cache/pins")[1]["pins"]
        if pins:
            server.ask("DELETE", "/api/cache/pins", {"ids": [each["id"] for each in pins]})
        server.ask("PUT", "/api/recording", {"enabled": False})
        configurator.bare()
        status, answer = server.ask("POST", "/api/config/reload", {}, CALM_SECONDS)
        if status != 200:
            self._outcome.problems.append(f"the last reload is answered {status}: {answer}")
            return None
        while (
            (left := self._left(server, fleet)) and "problems" not in left and time.monotonic() < began + CALM_SECONDS
        ):
            time.sleep(0.2)
        if left:
            self._outcome.problems.append(f"when all had gone, this was left: {left}")
            return None
        self._outcome.calm.append(time.monotonic() - began)
        return server.resources(fleet.pids)

    def _left(self, server: SoakServer, fleet: Fleet) -> dict[str, object]:
        """What is wrong, what is held though nobody is there, and what the server takes more of than at its start."""
        found = server.audit()
        problems = {"problems": found["problems"]} if found["problems"] else {}
        held = {name: count for name, count in found["held"].items() if count}
        assert self._outcome.fresh is not None
        return problems | held | more(self._outcome.fresh, server.resources(fleet.pids))

    def _end(self, server: SoakServer, storages: Storages) -> None:
        outcome = self._outcome
        if outcome.before is not None and outcome.after is not None:
            grown = outcome.after.anonymous - outcome.before.anonymous
            if grown > MARGIN:
                outcome.problems.append(f"the server's memory has grown by {grown >> 20} MiB since the warm-up")
        if not server.runs:
            outcome.problems.insert(0, "the server has ended by itself")
        elif server.stop() != 0:
            outcome.problems.append("the server did not end as it should")
        log = [line for line in server.output().splitlines() if '"kvkeep.audit"' not in line]
        outcome.problems += [line for line in log if is_alarming(line)][:10]
        if outcome.problems:
            outcome.events += ["", "the server's log:", *log[-60:]]
        outcome.stored = check_storages(storages, self._seed)
        for name, found in outcome.stored.items():
            outcome.problems += [f"in {name}: {problem}" for problem in found.problems[:10]]

    def _look(self, server: SoakServer, fleet: Fleet, havoc: Havoc) -> None:
        """Now and then a line of what was done, in a terminal one that is renewed; and a look at the memory."""
        now, is_terminal = time.monotonic(), sys.stdout.isatty()
        if now - self._told < (1.0 if is_terminal else LINE_SECONDS):
            return
        self._told = now
        if server.runs:
            self._outcome.memory.append((now - self._began, server.resources([]).anonymous))
        counts, done = fleet.counts, havoc.counts
        line = (
            f"{now - self._began:6.0f} s  {counts['turns']} turns, {counts['chunks that were hits']} hits, "
            f"{counts['bytes verified'] / 1e9:.2f} GB verified, {done['kills of a client process']} kills, "
            f"{sum(count for name, count in done.items() if 'clear' in name)} clears, "
            f"{sum(count for name, count in done.items() if 'reload' in name)} reloads, "
            f"{done['restarts of Valkey']} restarts of L2"
        )
        print(f"\r{line}\x1b[K" if is_terminal else line, end="" if is_terminal else "\n", flush=True)


def more(before: Resources, after: Resources) -> dict[str, int]:
    """By how much each of what has to be the same is more, or less."""
    now = after.exact()
    return {name: now[name] - count for name, count in before.exact().items() if now[name] != count}


def is_alarming(line: str) -> bool:
    """A line of the server's log that tells of a defect; refusals and storages that fail are warnings."""
    return any(word in line for word in ("Traceback", "defect", "ERROR", "CRITICAL"))
