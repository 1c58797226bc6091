"""Mooncake Store: a master, and a client that lends memory, from the package `mooncake-transfer-engine`."""

from __future__ import annotations

import http.client
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.backend_process import BackendProcess, free_ports, listens

_LENDER = "tests.support.mooncake_lender"
ROOT = Path(__file__).resolve().parents[2]


def program() -> Path:
    """The master's. Skips the test where there is none."""
    spec = importlib.util.find_spec("mooncake")
    found = Path(spec.origin).with_name("mooncake_master") if spec is not None and spec.origin else None
    if found is None or not found.exists():
        pytest.skip("Mooncake is not installed: pip install mooncake-transfer-engine-non-cuda", allow_module_level=True)
    why = subprocess.run([str(found), "--version"], capture_output=True, text=True, check=False, timeout=60)
    if "error while loading" in why.stderr:
        pytest.skip(f"Mooncake cannot be started: {why.stderr.strip()}", allow_module_level=True)
    return found


class Master(BackendProcess):
    """With the metadata server in it."""

    name = "mooncake-master"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._port, self._metadata_port, self._admin_port = free_ports(3)
        self._program = program()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def metadata(self) -> str:
        return f"http://127.0.0.1:{self._metadata_port}/metadata"

    @property
    def admin(self) -> str:
        return f"127.0.0.1:{self._admin_port}"

    def command(self) -> Sequence[str]:
        return [
            str(self._program),
            f"-rpc_port={self._port}",
            "-rpc_address=127.0.0.1",
            "-enable_http_metadata_server=true",
            "-http_metadata_server_host=127.0.0.1",
            f"-http_metadata_server_port={self._metadata_port}",
            "-metrics_host=127.0.0.1",
            f"-metrics_port={self._admin_port}",
            # A lender that is paused in a test is not to be given up meanwhile.
            "-client_ttl=30",
        ]

    def is_ready(self) -> bool:
        return all(map(listens, (self._port, self._metadata_port, self._admin_port)))

    def keys(self) -> set[str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._admin_port, timeout=10)
        try:
            connection.request("GET", "/get_all_keys")
            return set(connection.getresponse().read().decode().split())
        finally:
            connection.close()


class Lender(BackendProcess):
    """A client that lends memory to the cluster, and does by the library's plainest calls what it is told."""

    name = "mooncake-lender"

    def __init__(self, folder: Path, master: Master, size: int) -> None:
        super().__init__(folder)
        self._master = master
        self._size = size
        [self._port] = free_ports(1)

    def command(self) -> Sequence[str]:
        where = (self._master.address, self._master.metadata, str(self._size), str(self._port))
        return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {_LENDER}", *where]

    def is_ready(self) -> bool:
        return listens(self._port)

    def put(self, key: str, content: bytes) -> None:
        status, _ = self._ask("PUT", key, content)
        assert status == 200, f"the lender answered {status}"

    def get(self, key: str) -> bytes | None:
        status, content = self._ask("GET", key)
        return content if status == 200 else None

    def remove(self, prefix: str) -> None:
        """All objects whose keys begin so."""
        status, _ = self._ask("DELETE", prefix)
        assert status == 200, f"the lender answered {status}"

    def _ask(self, method: str, key: str, content: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            connection.request(method, f"/{key}", content)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
