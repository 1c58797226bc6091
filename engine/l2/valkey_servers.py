"""The servers of `valkey_l2.py`: which of them has a key, and connections to them.

The Valkey client reads the cluster's topology and makes the connections, with TLS and authentication.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from libvalkey import LibvalkeyError
from valkey import exceptions
from valkey.cluster import ClusterNode, NodesManager
from valkey.connection import ConnectionPool
from valkey.crc import VALKEY_CLUSTER_HASH_SLOTS, key_slot

from engine.l2.base import DeniedError, FullError, L2Error, UnavailableError
from engine.l2.resp import Exchange, RefusedError

_REFUSALS: Final = {
    "OOM": FullError,
    "NOAUTH": DeniedError,
    "WRONGPASS": DeniedError,
    "NOPERM": DeniedError,
    "DENIED": DeniedError,
    "READONLY": DeniedError,
}
"""By the first word of an error; all others may pass."""
_REDIRECTION: Final = re.compile(r"(?:MOVED|ASK) \d+ (\S*):(\d{1,5})")
_TEXT_LIMIT: Final = 200


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Route(NamedTuple):
    """Where to send a command."""

    address: Address
    asking: bool = False
    """Whether the server gets the key's slot at this moment, and serves it only to those who have been sent to it."""


class Servers:
    """A cluster, known by some of its servers, or a single server. May be used from several threads."""

    def __init__(self, seeds: Sequence[Address], cluster: bool, settings: Mapping[str, Any], limit: float) -> None:
        """`settings` are the client's for each connection; `limit` is the seconds that one call may take."""
        self._seeds: Final = seeds
        self._cluster: Final = cluster
        # NOTE: A call that connects first must still end in time: a server that hangs keeps it for half of that.
        self._settings: Final = {**settings, "socket_timeout": limit / 2, "socket_connect_timeout": limit / 2}
        self._pools: dict[Address, ConnectionPool] = {}
        self._owners: Sequence[Address | None] = ()
        """The primary server of each slot, in a cluster."""
        self._outdated = False
        self._failed: Address | None = None

    def open(self, deadline: float) -> None:
        """Raises L2Error unless the server, or one of the cluster, accepts us."""
        if self._cluster:
            self._read_topology(deadline)
            return
        [address] = self._seeds
        with self.exchange(address, deadline) as exchange, self.failures(address):
            exchange.send([(b"PING",)])
            [answer] = exchange.receive(1)
        # A user who may not ask for it is one who is let in.
        if isinstance(answer, RefusedError) and answer.code != "NOPERM":
            raise self.refusal(answer, address)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.disconnect()
        self._pools = {}

    def primaries(self, deadline: float) -> list[Address]:
        """The servers that have keys. Raises L2Error."""
        if not self._cluster:
            return list(self._seeds)
        self._refresh(deadline)
        return sorted({owner for owner in self._owners if owner is not None})

    def routes(self, keys: Sequence[bytes], deadline: float) -> list[Route]:
        """Where each key is. Raises L2Error."""
        if not self._cluster:
            return [Route(self._seeds[0])] * len(keys)
        self._refresh(deadline)
        return [self._route(key_slot(key)) for key in keys]

    def redirected(self, error: RefusedError, route: Route) -> Route:
        """Where the server sends a command instead. Raises L2Error if its answer is another error."""
        match = _REDIRECTION.fullmatch(str(error))
        if match is None:
            raise self.refusal(error, route.address)
        if not self._cluster:
            raise UnavailableError(f"{route.address} belongs to a cluster: give it as one of its nodes")
        self._outdated = self._outdated or error.code == "MOVED"
        host, port = match.groups()
        return Route(Address(host or route.address.host, int(port)), error.code == "ASK")

    def refusal(self, error: RefusedError, address: Address) -> L2Error:
        return _REFUSALS.get(error.code, UnavailableError)(f"{address} answers: {str(error)[:_TEXT_LIMIT]}")

    @contextmanager
    def exchange(self, address: Address, deadline: float) -> Iterator[Exchange]:
        """A connection to a server for one call, which ends with it unless it stays in step. Raises L2Error."""
        pool = self._pool(address)
        with self.failures(address):
            connection = pool.get_connection("")
        # NOTE: The client has no public way to the socket, which is there from here on.
        assert connection._sock is not None
        exchange = Exchange(connection._sock, deadline)
        try:
            yield exchange
        finally:
            if not exchange.in_step:
                connection.disconnect()  # type: ignore[no-untyped-call]
            pool.release(connection)

    @contextmanager
    def failures(self, address: Address) -> Iterator[None]:
        """Turns what fails on a connection to the server into L2Error."""
        try:
            yield
        except (OSError, UnicodeError, LibvalkeyError, exceptions.ValkeyError) as error:
            self._outdated, self._failed = True, address
            raise _failure(address, error) from None

    def _pool(self, address: Address) -> ConnectionPool:
        """NOTE: It has no limit: no thread uses more than one or two connections to a server at a time."""
        pool = self._pools.get(address)
        if pool is None:
            new = ConnectionPool(host=address.host, port=address.port, **self._settings)
            pool = self._pools.setdefault(address, new)
        return pool

    def _route(self, slot: int) -> Route:
        owner = self._owners[slot]
        if owner is None:
            self._outdated = True
            raise UnavailableError(f"no server of the cluster has slot {slot}")
        return Route(owner)

    def _refresh(self, deadline: float) -> None:
        if self._outdated:
            self._read_topology(deadline)

    def _read_topology(self, deadline: float) -> None:
        """Asks one server after the other for the topology, the one that has failed last of all."""
        known = dict.fromkeys([*self._owners, *self._seeds])
        candidates = sorted((address for address in known if address), key=lambda address: address == self._failed)
        problem: L2Error = UnavailableError("there is no time left to ask for the topology of the cluster")
        for position, address in enumerate(candidates):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                self._owners = _owners(address, self._settings, left / (len(candidates) - position))
                self._outdated = False
                return
            except (OSError, exceptions.ValkeyClusterException) as error:
                problem = _failure(address, error.__cause__ or error)
        raise problem


def _owners(address: Address, settings: Mapping[str, Any], limit: float) -> list[Address | None]:
    """The primary server of each slot, as one of the cluster tells. Raises OSError and ValkeyClusterException."""
    node = ClusterNode(*address)  # type: ignore[no-untyped-call]
    limits = {"socket_timeout": limit, "socket_connect_timeout": limit}
    try:
        slots = NodesManager([node], from_url=True, **{**settings, **limits}).slots_cache
    finally:
        if node.valkey_connection is not None:
            node.valkey_connection.connection_pool.disconnect()
    primaries = {slot: nodes[0] for slot, nodes in slots.items() if nodes}
    addresses = {node.name: Address(node.host, node.port) for node in primaries.values()}
    return [addresses[primaries[slot].name] if slot in primaries else None for slot in range(VALKEY_CLUSTER_HASH_SLOTS)]


def _failure(address: Address, error: BaseException) -> L2Error:
    if isinstance(error, TimeoutError | exceptions.TimeoutError):
        return UnavailableError(f"{address} does not answer in time")
    # NOTE: What a server says while we connect may repeat the password, as does one that does not know the command.
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError | exceptions.ResponseError):
        return DeniedError(f"{address} refuses the user, the password or the number of the database")
    return UnavailableError(f"{address} fails: {error}")
