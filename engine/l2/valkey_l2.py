"""Objects as strings on a Valkey or Redis server, or on a cluster of them."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from valkey.connection import SSLConnection, parse_url

from engine.l2.base import AbsentError, L2Adapter, Stored, UnavailableError, Usage
from engine.l2.resp import Exchange, RefusedError
from engine.l2.valkey_servers import Address, Route, Servers

T = TypeVar("T")

_NAME: Final = re.compile(rb"[a-z0-9_-]{1,128}")
_SCAN_COUNT: Final = 1000
_PORT: Final = 6379
_REDIRECTIONS: Final = 3
"""To the new server of a slot, and to the one that it moves to; once more if it moves just then."""
_FOREIGN: Final = "WRONGTYPE"
"""The error for a key that has something else than a string; it is not ours then."""


class Adapter(L2Adapter):
    """Each object is the string under `prefix` and its name."""

    def __init__(
        self,
        *,
        url: str | None = None,
        nodes: Sequence[str] | None = None,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
        tls_ca: str | None = None,
        ttl: int | None = None,
        prefix: str = "kvkeep:",
        timeout: float = 5.0,
    ) -> None:
        """Either `url` names a single server (`valkey://`, `valkeys://` with TLS, or the same of Redis, with user,
        password and database), or `nodes` are some of a cluster, as `HOST[:PORT]`.

        `tls_ca` is a file of the certificates to trust, and means TLS. `ttl` is how many seconds an object lives after
        it was written, for good if None; reading it does not prolong that. `timeout` is the seconds that a call may
        take, and in a scan each piece. Raises ValueError if an address cannot be read.
        """
        seeds, settings = _cluster_nodes(nodes) if nodes else _single_server(url or "")
        own = {"username": username, "password": password}
        settings.update((key, value) for key, value in own.items() if value is not None)
        if tls or tls_ca is not None or settings.get("connection_class") is SSLConnection:
            settings |= {"connection_class": SSLConnection, "ssl_ca_certs": tls_ca, "ssl_check_hostname": True}
        # The name lets operators find us among the clients.
        settings |= {"lib_name": "kvkeep", "lib_version": None, "socket_keepalive": True}
        self._servers: Final = Servers(seeds, bool(nodes), settings, timeout)
        self._timeout: Final = timeout
        self._ttl: Final = ttl
        self._prefix: Final = prefix.encode()

    def open(self, memory: Sequence[memoryview]) -> None:
        self._servers.open(self._deadline())

    def close(self) -> None:
        self._servers.close()

    def contains(self, names: Sequence[str]) -> list[bool]:
        return [answer == 1 for answer in self._each(b"EXISTS", self._keys(names))]

    def read_into(self, name: str, buffers: Sequence[memoryview]) -> int:
        [key] = self._keys([name])
        size = self._on_owner(key, lambda exchange: exchange.get(key, buffers))
        if size is None:
            raise AbsentError(f"there is no object {name}")
        return size

    def write(self, name: str, buffers: Sequence[memoryview]) -> None:
        [key] = self._keys([name])
        self._on_owner(key, lambda exchange: exchange.set(key, buffers, self._ttl))

    def delete(self, names: Sequence[str]) -> None:
        self._each(b"UNLINK", self._keys(names))

    def scan(self) -> Iterator[Stored]:
        for address in self._servers.primaries(self._deadline()):
            # A server whose table grows meanwhile tells some keys twice.
            seen: set[bytes] = set()
            for found in self._scan_server(address):
                keys = [key for key in found if key not in seen and self._is_ours(key)]
                seen.update(keys)
                yield from self._stored(keys)

    def used(self) -> Usage | None:
        """None: a server counts keys and its own memory, whoever else uses it."""
        return None

    def _keys(self, names: Sequence[str]) -> list[bytes]:
        return [self._prefix + name.encode() for name in names]

    def _is_ours(self, key: bytes) -> bool:
        return _NAME.fullmatch(key, len(self._prefix)) is not None

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout

    def _on_owner(self, key: bytes, action: Callable[[Exchange], T]) -> T:
        """What `action` returns, done with the server that has the key. Raises L2Error."""
        deadline = self._deadline()
        [route] = self._servers.routes([key], deadline)
        for _ in range(_REDIRECTIONS + 1):
            try:
                with self._servers.exchange(route.address, deadline) as exchange, self._servers.failures(route.address):
                    if route.asking:
                        exchange.send([(b"ASKING",)])
                        exchange.receive(1)
                    return action(exchange)
            except RefusedError as error:
                if error.code == _FOREIGN:
                    raise AbsentError(f"what is stored as {key.decode()} is no string") from None
                route = self._servers.redirected(error, route)
        raise _astray()

    def _each(self, command: bytes, keys: Sequence[bytes]) -> list[Any]:
        """The answers to a command with each of the keys, after one round trip to all servers at a time.

        That to a key which has something else than a string may be a RefusedError. Raises L2Error.
        """
        deadline = self._deadline()
        answers: list[Any] = [None] * len(keys)
        todo = dict(enumerate(self._servers.routes(keys, deadline)))
        for _ in range(_REDIRECTIONS + 1):
            redirected: dict[int, Route] = {}
            for position, answer in self._round_trip(command, keys, todo, deadline).items():
                if isinstance(answer, RefusedError) and answer.code != _FOREIGN:
                    redirected[position] = self._servers.redirected(answer, todo[position])
                answers[position] = answer
            if not redirected:
                return answers
            todo = redirected
        raise _astray()

    def _round_trip(
        self, command: bytes, keys: Sequence[bytes], routes: dict[int, Route], deadline: float
    ) -> dict[int, Any]:
        """Asks every server before it waits for the first; the answers by the positions of the keys."""
        batches: dict[Route, list[int]] = defaultdict(list)
        for position, route in routes.items():
            batches[route].append(position)
        answers: dict[int, Any] = {}
        with ExitStack() as stack:
            exchanges = {r: stack.enter_context(self._servers.exchange(r.address, deadline)) for r in batches}
            for route, positions in batches.items():
                with self._servers.failures(route.address):
                    exchanges[route].send([c for p in positions for c in _commands(command, keys[p], route)])
            for route, positions in batches.items():
                each = 2 if route.asking else 1
                with self._servers.failures(route.address):
                    received = exchanges[route].receive(each * len(positions))
                answers.update(zip(positions, received[each - 1 :: each], strict=True))
        return answers

    def _stored(self, keys: Sequence[bytes]) -> Iterator[Stored]:
        sizes = self._each(b"STRLEN", keys)
        names = [key[len(self._prefix) :].decode() for key in keys]
        # What has gone meanwhile has no length either.
        empty = [name for name, size in zip(names, sizes, strict=True) if size == 0]
        gone = {name for name, there in zip(empty, self.contains(empty), strict=True) if not there}
        for name, size in zip(names, sizes, strict=True):
            if not isinstance(size, RefusedError) and name not in gone:
                yield Stored(name, size)

    def _scan_server(self, address: Address) -> Iterator[list[bytes]]:
        """The keys that begin as ours do, in pieces, each after one round trip."""
        cursor = None
        while cursor != b"0":
            cursor, keys = self._page(address, cursor or b"0")
            yield keys

    def _page(self, address: Address, cursor: bytes) -> tuple[bytes, list[bytes]]:
        command = (b"SCAN", cursor, b"MATCH", _literal(self._prefix) + b"*", b"COUNT", b"%d" % _SCAN_COUNT)
        with self._servers.exchange(address, self._deadline()) as exchange, self._servers.failures(address):
            exchange.send([command])
            [answer] = exchange.receive(1)
        if isinstance(answer, RefusedError):
            raise self._servers.refusal(answer, address)
        return answer[0], answer[1]


def _single_server(url: str) -> tuple[list[Address], dict[str, Any]]:
    try:
        parsed: dict[str, Any] = parse_url(url)
    except ValueError:
        # NOTE: The parser's own words may be a part of the password.
        raise ValueError(
            "the url of a Valkey server is valkey://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE], or valkeys:// for TLS, "
            "with every special character of user and password as % and its code"
        ) from None
    return [Address(parsed.pop("host", "localhost"), parsed.pop("port", _PORT))], parsed


def _cluster_nodes(nodes: Sequence[str]) -> tuple[list[Address], dict[str, Any]]:
    parts = [urlsplit(f"//{node}") for node in nodes]
    return [Address(part.hostname or "localhost", part.port or _PORT) for part in parts], {}


def _commands(command: bytes, key: bytes, route: Route) -> list[tuple[bytes, ...]]:
    return [(b"ASKING",), (command, key)] if route.asking else [(command, key)]


def _literal(text: bytes) -> bytes:
    """A pattern of the server that stands for exactly this text."""
    return re.sub(rb"([*?\[\]\\^])", rb"\\\1", text)


def _astray() -> UnavailableError:
    return UnavailableError("the servers of the cluster send us to one another; its slots are on the move")
