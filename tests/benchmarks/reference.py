"""The reference server that comes with the client's package, behind the interface of our own server process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.support.server import ServerProcess, free_port

_PROGRAM = Path(sys.executable).with_name("lmcache")


def available() -> bool:
    """Whether this environment holds the reference server."""
    return _PROGRAM.is_file()


class ReferenceServer(ServerProcess):
    """``lmcache server`` with both transfer modes.

    With a pool, whose name carries our process id, the engine copies over shared memory, and the pool is touched only
    as it fills; without one, which is its default, it allocates all of L1 at its start.
    """

    name = "reference"
    health_path = "/healthcheck"

    def __init__(self, *flags: str, l1_size_gb: float = 0.25, pool: bool = True) -> None:
        super().__init__(*flags, l1_size_gb=l1_size_gb)
        self.port, self.http_port = free_port(), free_port()
        self._pool = f"kvkeep-reference-{os.getpid()}-{self.port}" if pool else ""

    def command(self) -> list[str]:
        data = ["--host", "127.0.0.1", "--port", str(self.port), *(["--shm-name", self._pool] if self._pool else [])]
        http = ["--http-host", "127.0.0.1", "--http-port", str(self.http_port), "--prometheus-port", str(free_port())]
        cache = ["--l1-size-gb", str(self.l1_size_gb), "--eviction-policy", "LRU", "--supported-transfer-mode", "auto"]
        return [str(_PROGRAM), "server", *data, *http, *cache, *self.flags]

    def environment(self) -> dict[str, str]:
        quiet = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1"}
        return {**super().environment(), **quiet}

    def is_ready(self) -> bool:
        return self._answers(self.health_path)

    def _end(self, number: int) -> int:
        code = super()._end(number)
        if self._pool:
            for left in Path("/dev/shm").glob(f"*{self._pool}*"):
                left.unlink(missing_ok=True)
        return code
