"""What operators do to the server, and what breaks around it. All of it is drawn; nothing of it may be noticed."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from tests.soak.bench import MIB, Configurator, SoakServer, Storages
from tests.soak.cast import CHUNK, MODELS, SALTS, prompts
from tests.soak.fleet import PROCESSES, Fleet
from tests.soak.wire import LIMIT

PAUSE_SECONDS = 0.4
BREAK_SECONDS = 4.0
ALLOWED = {200, 202, 404, 409, 507}
"""A refusal is an answer; that the server does not know how to go on is none."""
LOOKS = (
    "/api/status",
    "/api/healthcheck",
    "/api/workers",
    "/api/sessions?limit=100",
    "/api/jobs",
    "/api/l2",
    "/api/quotas",
    "/api/cache/pins",
    "/api/config",
    "/api/advisor",
)


class Havoc:
    """Two threads: one for the operators, one for what breaks."""

    def __init__(
        self, server: SoakServer, configurator: Configurator, storages: Storages, fleet: Fleet, seed: int
    ) -> None:
        self._server = server
        self._configurator = configurator
        self._storages = storages
        self._fleet = fleet
        self._prompts = prompts(seed)
        self._operator, self._breaker = random.Random(f"{seed} operator"), random.Random(f"{seed} breaker")
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.broken: list[str] = []
        self.diary: deque[str] = deque(maxlen=60)
        self._actions: list[tuple[int, str, Callable[[], None]]] = [
            (3, "clears of all of L1", self._clear_all),
            (4, "selective clears", self._clear_selected),
            (1, "clears of all tiers", self._clear_tiers),
            (3, "deletions", self._delete),
            (4, "pins", self._pin),
            (1, "unpins", self._unpin),
            (3, "quotas", self._set_quota),
            (1, "quotas dropped", self._drop_quota),
            (3, "prefetches", self._prefetch),
            (5, "reloads by request", self._reload),
            (2, "reloads by SIGHUP", self._hang_up),
            (1, "reloads by watch", lambda: self._configurator.draw(self._operator)),
            (3, "works on tiers", self._work_on_tier),
            (1, "recordings switched", self._record),
            (4, "explained lookups", self._explain),
            (6, "looks", lambda: self._ask("GET", self._operator.choice(LOOKS))),
            (1, "audits", self.audit),
        ]

    def start(self) -> None:
        self._stop.clear()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in (self._operate, self._break)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Returns when it is quiet, and everything that was broken is mended."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def audit(self) -> None:
        """While everybody is at work."""
        found = self._server.audit()
        self.broken += found["problems"]

    def _run(self, work: Callable[[], None]) -> None:
        try:
            while not self._stop.is_set() and not self.broken:
                work()
        except Exception as error:
            self.broken.append(f"{error!r}, after: {self.diary[-1] if self.diary else 'nothing'}")

    def _operate(self) -> None:
        weights = [weight for weight, _, _ in self._actions]
        [(_, name, action)] = self._operator.choices(self._actions, weights)
        self._note(name)
        action()
        self._stop.wait(self._operator.expovariate(1 / PAUSE_SECONDS))

    def _break(self) -> None:
        self._stop.wait(self._breaker.expovariate(1 / BREAK_SECONDS))
        if self._stop.is_set():
            return
        chance, valkey = self._breaker.random(), self._storages.valkey
        if chance < 0.65:
            self._note("kills of a client process")
            self._fleet.kill(self._breaker.randrange(PROCESSES))
        elif chance < 0.85:
            self._note("restarts of Valkey")
            valkey.stop()
            self._stop.wait(self._breaker.uniform(0, 3))
            valkey.start()
        else:
            self._note("pauses of Valkey")
            with valkey.paused():
                self._stop.wait(self._breaker.uniform(0.1, 4))

    def _note(self, name: str) -> None:
        self.counts[name] += 1
        self.diary.append(f"{time.monotonic():.3f} {name}")

    def _ask(self, method: str, path: str, body: object = None) -> object:
        try:
            status, answer = self._server.ask(method, path, body, LIMIT)
        except TimeoutError:
            raise AssertionError(f"{method} {path} was not answered within {LIMIT:g} s") from None
        self.statuses[f"{method} {path.partition('?')[0]} {status}"] += 1
        self.diary.append(f"{time.monotonic():.3f} {method} {path} {status}")
        if status not in ALLOWED:
            self.broken.append(f"{method} {path} {body} is answered {status}: {answer}")
        return answer

    # What operators do

    def _clear_all(self) -> None:
        self._ask("POST", "/api/clear-cache")

    def _clear_selected(self) -> None:
        dice = self._operator
        selection = {
            "model": dice.choice(MODELS).name,
            "cache_salt": dice.choice(SALTS),
            "older_than": dice.uniform(0, 3),
        }
        chosen = {name: value for name, value in selection.items() if dice.random() < 0.5}
        self._ask("POST", "/api/cache/clear", {"tier": "l1", **chosen, "dry_run": dice.random() < 0.1})

    def _clear_tiers(self) -> None:
        self._ask("POST", "/cache/clear", {"tier": "all"})

    def _delete(self) -> None:
        page = self._ask("GET", "/api/cache/objects?tier=l1&limit=50")
        assert isinstance(page, dict)
        found = [each["key"] for each in page["objects"]]
        if found:
            self._ask("DELETE", "/api/cache/objects", {"keys": found[:: self._operator.randint(1, 5)]})

    def _question(self) -> dict[str, object]:
        model, tokens = self._operator.choice(MODELS), self._operator.choice(self._prompts)
        return {
            "model": model.name,
            "tokens": tokens[: self._operator.randint(1, len(tokens) // CHUNK) * CHUNK],
            "cache_salt": self._operator.choice(SALTS),
        }

    def _pin(self) -> None:
        self._ask("PUT", "/api/cache/pins", {**self._question(), "ttl_seconds": self._operator.uniform(1, 10)})

    def _unpin(self) -> None:
        pins = self._ask("GET", "/api/cache/pins")
        assert isinstance(pins, dict)
        if pins["pins"]:
            self._ask("DELETE", "/api/cache/pins", {"ids": [each["id"] for each in pins["pins"]][:3]})

    def _set_quota(self) -> None:
        limit = self._operator.choice((None, MIB, 3 * MIB))
        quota = {"limit": limit, "reservation": self._operator.choice((0, 0, MIB))}
        self._ask("PUT", f"/api/quotas/{self._operator.choice(SALTS[1:])}", quota)

    def _drop_quota(self) -> None:
        self._ask("DELETE", f"/api/quotas/{self._operator.choice(SALTS[1:])}")

    def _prefetch(self) -> None:
        self._ask("POST", "/api/cache/prefetches", self._question())

    def _explain(self) -> None:
        self._ask("POST", "/api/cache/lookups", self._question())

    def _reload(self) -> None:
        self._configurator.draw(self._operator)
        self._ask("POST", "/api/config/reload", {})

    def _hang_up(self) -> None:
        self._configurator.draw(self._operator)
        assert self._server.process is not None
        self._server.process.send_signal(signal.SIGHUP)

    def _work_on_tier(self) -> None:
        tier = self._operator.choice(("remote", "disk"))
        self._ask("POST", f"/api/l2/{tier}/{self._operator.choice(('pause', 'resume', 'resume', 'clear', 'rescan'))}")

    def _record(self) -> None:
        self._ask("PUT", "/api/recording", {"enabled": self._operator.random() < 0.5})
