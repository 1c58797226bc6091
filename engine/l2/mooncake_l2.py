"""Objects in the memory that a Mooncake Store cluster lends: a master knows where each is, clients move the bytes.

What the client library does, as found out with 0.3.13, decides what is done here:

- Its calls end after the limits that it reads from the environment when a client is made, whatever is stopped or
  killed: the master, or who lends the memory. After a transfer has failed it leaves the buffers alone, also when the
  other side comes back. So buffers are the caller's, without a copy between.
- A master that was killed and started again is found again by it, by itself. Until then a refused connection takes
  it 4 s and more, which a look at the port before spares.
- Its plain put of a name that exists does nothing and reports success; its sessions tell.
- A call after `close` crashes the process.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from itertools import accumulate, islice
from mmap import mmap
from threading import Condition
from typing import Final
from urllib.parse import urlsplit

import mooncake.store as library  # type: ignore[import-untyped,unused-ignore]
from mooncake.store import MooncakeDistributedStore, ReplicaDescriptor

from engine.l2.base import (
    AbsentError,
    DeniedError,
    FullError,
    L2Adapter,
    L2Error,
    Stored,
    UnavailableError,
    Usage,
)

_NAME: Final = re.compile(r"[a-z0-9_-]{1,128}")
_ADMIN_PORT: Final = 9003
"""Where a master tells about itself unless it was started otherwise (`-metrics_port`)."""
_SCAN_OBJECTS: Final = 512
_LOG_LEVEL: Final = "_ZN3fLI17FLAGS_minloglevelE"
"""The symbol of the library's log for the least level that goes to stderr."""
_FATAL: Final = 3

# Codes of the library.
_FULL: Final = -200
_EXISTS: Final = -705
_NOT_READY: Final = -703
_ABSENT: Final = -704
_TRANSFER: Final = -800
_UNREACHED: Final = frozenset({-900, -901})


class Adapter(L2Adapter):
    """Each object is the one of the key `prefix` and its name. Empty objects cannot be stored.

    All buffers have to lie in the memory that the adapter was opened with.
    """

    def __init__(
        self,
        *,
        master: str,
        metadata_server: str,
        protocol: str = "tcp",
        local_hostname: str = "127.0.0.1",
        segment: int = 0,
        local_buffer: int = 16 << 20,
        device: str = "",
        admin: str | None = None,
        prefix: str = "kvkeep/",
        timeout: float = 10.0,
    ) -> None:
        """`master` is its HOST:PORT, `metadata_server` the URL where the clients find each other, `local_hostname` the
        name or address under which they find this one. `segment` is how many bytes are lent to the cluster,
        `local_buffer` how many the library has for itself. `device` names the RDMA devices for the protocol `rdma`.

        `admin` is the HOST:PORT where the master tells about itself, which scans need; the master's host and port 9003
        if None. `timeout` is the seconds that a call may take, at least 3.
        """
        self._master: Final = master
        self._metadata_server: Final = metadata_server
        self._protocol: Final = protocol
        self._local_hostname: Final = local_hostname
        self._segment: Final = segment
        self._local_buffer: Final = local_buffer
        self._device: Final = device
        self._admin: Final = admin or f"{_host_port(master)[0]}:{_ADMIN_PORT}"
        self._prefix: Final = prefix
        self._timeout: Final = timeout
        self._reading: Final = _Sessions()
        self._writing: Final = _Sessions()
        self._opened: MooncakeDistributedStore | None = None
        self._doubted = True
        """Whether the master was not reached lately."""

    def open(self, memory: Sequence[memoryview]) -> None:
        self.close()
        self._doubted = True
        self._reach_master()
        _reach_metadata(self._metadata_server, self._timeout / 4)
        _limit(self._timeout)
        store = _silent_client()
        code = self._join(store) or _register(store, memory)
        if code != 0:
            store.close()
            raise UnavailableError(f"Mooncake's client could not join the cluster of {self._master} (code {code})")
        self._opened = store
        self._doubted = False

    def close(self) -> None:
        store, self._opened = self._opened, None
        if store is not None:
            store.close()

    def contains(self, names: Sequence[str]) -> list[bool]:
        if not names:
            return []
        answers: list[int] = self._client().batch_is_exist(self._keys(names))
        self._check(min(answers))
        return [answer == 1 for answer in answers]

    def read_into(self, name: str, buffers: Sequence[memoryview]) -> int:
        """PERF: By a session and ranges of the object, though it is all of it: mostly 1.2 to 2 times as fast as the
        library's other calls that fill several buffers. Only it does not tell the size, which is asked for before."""
        store, [key] = self._client(), self._keys([name])
        addresses, sizes = _places(buffers)
        wanted = sum(sizes)
        with self._reading.alone(key, self._timeout / 2):
            self._check(*store.batch_get_session_start([key]))
            try:
                size = self._size(store, key)
                if size == wanted:
                    offsets = [_offsets(sizes)]
                    [moved] = store.batch_get_into_multi_buffer_ranges([key], [addresses], [sizes], offsets)
                    self._check_moved(moved, size)
            finally:
                store.batch_get_session_end([key])
        return size

    def write(self, name: str, buffers: Sequence[memoryview]) -> None:
        """Reserves the room, moves the bytes, and only then makes the object seen."""
        store, [key] = self._client(), self._keys([name])
        addresses, sizes = _places(buffers)
        size = sum(sizes)
        if size == 0:
            raise DeniedError("Mooncake Store keeps no empty objects")
        with self._writing.alone(key, self._timeout / 2):
            [code] = store.batch_put_session_start([key], [size])
            if code == _EXISTS:
                self._replace(store, key, buffers, size)
                return
            self._check(code)
            offsets = [_offsets(sizes)]
            [moved] = store.batch_put_from_multi_buffer_ranges([key], [addresses], [sizes], offsets)
            if moved != size:
                store.batch_put_session_revoke([key])
            self._check_moved(moved, size)
            self._check(*store.batch_put_session_end([key]))

    def delete(self, names: Sequence[str]) -> None:
        """NOTE: By force, since otherwise whatever was looked at in the last seconds stays. Whoever reads it just then
        may get other bytes, and finds out by the envelope."""
        if not names:
            return
        for code in self._client().batch_remove(self._keys(names), True):
            if code not in (_ABSENT, _NOT_READY):
                self._check(code)

    def scan(self) -> Iterator[Stored]:
        """Needs the master's `admin` address: clients cannot list."""
        names = self._names()
        while some := list(islice(names, _SCAN_OBJECTS)):
            replicas = self._client().batch_get_replica_desc(self._keys(some))
            for name in some:
                if described := replicas.get(self._prefix + name):
                    yield Stored(name, _stored_bytes(described[0]))

    def used(self) -> Usage | None:
        """None: a master counts what the whole cluster has, whoever else uses it."""
        return None

    def _keys(self, names: Sequence[str]) -> list[str]:
        return [self._prefix + name for name in names]

    def _client(self) -> MooncakeDistributedStore:
        """Raises UnavailableError if the master was not reached lately and still is not."""
        if self._opened is None:
            raise UnavailableError("the Mooncake adapter is not open")
        if self._doubted:
            self._reach_master()
        return self._opened

    def _join(self, store: MooncakeDistributedStore) -> int:
        """Makes it a client of the cluster; returns 0, or the library's code."""
        code: int = store.setup(
            self._local_hostname,
            self._metadata_server,
            self._segment,
            self._local_buffer,
            self._protocol,
            self._device,
            self._master,
        )
        return code

    def _reach_master(self) -> None:
        try:
            socket.create_connection(_host_port(self._master), self._timeout / 4).close()
        except OSError:
            raise UnavailableError(f"the Mooncake master {self._master} cannot be reached") from None

    def _check(self, code: int) -> None:
        """Raises what the code of a call means, unless it is none."""
        self._doubted = code in _UNREACHED
        if code < 0:
            raise self._meaning(code)

    def _check_moved(self, moved: int, size: int) -> None:
        """The same for a call that returns the bytes that it has moved."""
        self._check(moved if moved < 0 or moved == size else _TRANSFER)

    def _meaning(self, code: int) -> L2Error:
        if code in (_ABSENT, _NOT_READY):
            return AbsentError("there is no such object")
        if code == _FULL:
            return FullError("nobody in the Mooncake cluster has room")
        if code in _UNREACHED:
            return UnavailableError(f"the Mooncake master {self._master} does not answer")
        if code == _TRANSFER:
            return UnavailableError("who lends the memory for the object does not answer")
        return UnavailableError(f"Mooncake says {code}")

    def _size(self, store: MooncakeDistributedStore, key: str) -> int:
        """Bytes of the object. Raises L2Error."""
        size: int = store.get_size(key)
        self._check(size)
        return size

    def _replace(self, store: MooncakeDistributedStore, key: str, buffers: Sequence[memoryview], size: int) -> None:
        """Writes over an object, for which the library wants the bytes in one piece: the only copy here, for what is
        rare. It also takes the place of a writer that was killed.

        NOTE: Meanwhile the object is absent. Who has begun to read it may get parts of both, if they differ, and finds
        out by the envelope: the library writes over the same memory.
        """
        with mmap(-1, size) as piece:
            start = 0
            for buffer in buffers:
                piece[start : start + len(buffer)] = buffer
                start += len(buffer)
            address, _ = _place(memoryview(piece))
            self._check(store.register_buffer(address, size))
            try:
                code = store.upsert_from(key, address, size)
            finally:
                store.unregister_buffer(address)
        self._check(code)

    def _names(self) -> Iterator[str]:
        for key in self._ask_admin("/get_all_keys").splitlines():
            name = key.removeprefix(self._prefix)
            if key.startswith(self._prefix) and _NAME.fullmatch(name):
                yield name

    def _ask_admin(self, path: str) -> str:
        """What the master tells about itself. Raises UnavailableError."""
        connection = HTTPConnection(*_host_port(self._admin), timeout=self._timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, HTTPException):
            raise UnavailableError(f"the Mooncake master does not tell its keys at {self._admin}; see admin") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise UnavailableError(f"the Mooncake master answers {answer.status} at {self._admin}")
        return text


class _Sessions:
    """Keeps threads from doing the same with the same object at the same time: the library has one session for each."""

    def __init__(self) -> None:
        self._keys: Final[set[str]] = set()
        self._changed: Final = Condition()

    @contextmanager
    def alone(self, key: str, timeout: float) -> Iterator[None]:
        with self._changed:
            if not self._changed.wait_for(lambda: key not in self._keys, timeout):
                raise UnavailableError("another thread is at the object and does not get on")
            self._keys.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._keys.remove(key)
                self._changed.notify_all()


def _register(store: MooncakeDistributedStore, memory: Sequence[memoryview]) -> int:
    """Tells the client of the regions; returns 0, or the library's code for the first that it does not take."""
    for region in memory:
        code: int = store.register_buffer(*_place(region))
        if code != 0:
            return code
    return 0


def _silent_client() -> MooncakeDistributedStore:
    """A client that does not write each of its steps and errors to stderr, unless the environment wants that."""
    if "MC_LOG_LEVEL" in os.environ:
        return MooncakeDistributedStore()
    os.environ.setdefault("MC_YLT_LOG_LEVEL", "error")
    os.environ["MC_LOG_LEVEL"] = "ERROR"
    try:
        client = MooncakeDistributedStore()
    finally:
        del os.environ["MC_LOG_LEVEL"]
    # NOTE: There is no way to have no errors, which we raise anyway. Without the symbol they remain.
    with suppress(ValueError):
        ctypes.c_int32.in_dll(ctypes.CDLL(library.__file__), _LOG_LEVEL).value = _FATAL
    return client


def _limit(seconds: float) -> None:
    """Sets the limits of the library's steps, such that those of a call together keep to the seconds: up to three
    requests to the master, and a transfer that is tried twice.

    NOTE: They are of the whole process, read when a client is made or a transfer begins, the last in whole seconds.
    """
    transfer = max(1, int(seconds * 0.3))
    admission = seconds * 0.1
    request = max(0.1, (seconds - 2 * transfer - admission) / 3)
    milliseconds = {"MC_RPC_TIMEOUT_MS": request, "MC_RPC_CONNECT_TIMEOUT_MS": request}
    milliseconds["MC_TCP_ADMISSION_TIMEOUT_MS"] = admission
    for name, limit in milliseconds.items():
        os.environ[name] = str(round(limit * 1000))
    for name in ("MC_TCP_PROGRESS_TIMEOUT_SEC", "MC_TCP_STATUS_TIMEOUT_SEC"):
        os.environ[name] = str(transfer)
    # The tier tries again.
    os.environ["MC_STORE_CLIENT_SETUP_RETRIES"] = "1"


def _reach_metadata(url: str, timeout: float) -> None:
    """Raises UnavailableError. The library would try for a long time. A server of another kind is left to it."""
    parts = urlsplit(url)
    if parts.scheme != "http":
        return
    connection = HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout)
    try:
        connection.request("GET", f"{parts.path}?key=kvkeep")
        connection.getresponse().read()
    except (OSError, HTTPException):
        raise UnavailableError(f"the metadata server of Mooncake cannot be reached at {url}") from None
    finally:
        connection.close()


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _places(buffers: Sequence[memoryview]) -> tuple[list[int], list[int]]:
    """Addresses and sizes of the buffers that have any bytes."""
    places = [_place(buffer) for buffer in buffers if len(buffer)]
    return [address for address, _ in places], [size for _, size in places]


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Where in the object each buffer begins."""
    return [0, *accumulate(sizes[:-1])] if sizes else []


def _place(buffer: memoryview) -> tuple[int, int]:
    """Address and size of a writable buffer."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer)


def _stored_bytes(replica: ReplicaDescriptor) -> int:
    if replica.is_memory_replica():
        return int(replica.get_memory_descriptor().buffer_descriptor.size)
    return int(replica.get_disk_descriptor().object_size)
