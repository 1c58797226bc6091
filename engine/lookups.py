"""Lookups: which leading chunks of a prompt are there, and keeping them there until they were used. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, get_args

from engine.keys import namespace
from engine.l1.cache import L1Cache
from engine.l1.entry import Entry
from engine.prompts import Prompts, RefusedError
from engine.sessions import Session, Sessions
from engine.settings import Liveness
from engine.status import MissReason
from engine.traffic import Traffic
from engine.wire.messages import Key
from engine.workers import Workers

# An incomplete chunk is no miss: what lookups ask for are complete ones.
_COUNTED: Final = tuple(reason for reason in get_args(MissReason) if reason != "chunk_incomplete")


class Prefix(NamedTuple):
    """The leading chunks of a prompt that are there."""

    entries: list[Entry]
    """Chunk by chunk, those of every namespace."""
    missing: bytes | None
    """Key of the first object that is not there; None if all are."""


def prefixes(model_name: str, world_size: int, cache_salt: str, fingerprints: Iterable[bytes]) -> list[bytes]:
    """The prefixes of all namespaces in which a chunk has to be present to be a hit."""
    return [
        namespace(model_name, world_size, shard, fingerprint, cache_salt).prefix
        for fingerprint in fingerprints
        for shard in range(world_size)
    ]


def longest_prefix(cache: L1Cache, spaces: list[bytes], hashes: Iterable[bytes]) -> Prefix:
    """The leading chunks that are present in every namespace."""
    found: list[Entry] = []
    find = cache.find
    for hash_ in hashes:
        row = []
        for space in spaces:
            entry = find(space + hash_)
            if entry is None:
                return Prefix(found, space + hash_)
            row.append(entry)
        found += row
    return Prefix(found, None)


class Lookups:
    """The scheduler's side of the protocol. Belongs to the engine thread."""

    def __init__(
        self, cache: L1Cache, sessions: Sessions, workers: Workers, prompts: Prompts, traffic: Traffic
    ) -> None:
        self.hit_chunks = 0
        self.missed_chunks = 0
        self._missed: dict[MissReason, int] = dict.fromkeys(_COUNTED, 0)
        self._unexplained: list[bytes] = []
        """First missing objects of lookups whose reasons were not counted yet."""
        self.requests = 0
        self.without_workers = 0
        self.without_chunks = 0
        self.hit_objects = 0
        self._cache = cache
        self._sessions = sessions
        self._workers = workers
        self._prompts = prompts
        self._traffic = traffic

    def lookup(self, now: float, client: bytes, key: Key) -> None:
        """Finds and leases the longest prefix that every shard has; the result waits for `collect`.

        A request that looks up again gets a new result, and loses what its last one still leased. Raises RefusedError,
        with a result of 0.
        """
        session = self._open(now, client, key.request_id)
        if key.num_kv_readers < 0:
            raise RefusedError(f"num_kv_readers is {key.num_kv_readers}")
        fingerprints = self._workers.fingerprints((key.model_name, key.world_size))
        if not fingerprints:
            self.requests += 1
            self.without_workers += 1
            self._missed["layout_unknown"] += 1
            return
        chunks, hashes = self._prompts.prefix(key)
        spaces = prefixes(key.model_name, key.world_size, key.cache_salt, fingerprints)
        prefix = longest_prefix(self._cache, spaces, hashes)
        session.hits = len(prefix.entries) // len(spaces)
        self._lease(now, session, prefix.entries, max(1, key.num_kv_readers))
        self.requests += 1
        self.without_chunks += not chunks
        self.hit_objects += len(prefix.entries)
        self.hit_chunks += session.hits
        self.missed_chunks += chunks - session.hits
        if prefix.missing is not None:
            self._unexplained.append(prefix.missing)
        size = self._workers.chunk_bytes((key.model_name, key.world_size))
        self._traffic.found(key, chunks, session.suffix_first, len(spaces), size, self._cache.counters.clears)

    def missed(self) -> tuple[tuple[MissReason, int], ...]:
        """How many lookups did not find everything, by the reason of the first object that was not there.

        PERF: The reasons are looked up here, which is after the replies were sent, rather than before each of them.
        """
        for key in self._unexplained:
            # One that has come since then is being written at least.
            self._missed[self._cache.miss_reason(key)] += 1
        self._unexplained.clear()
        return tuple(self._missed.items())

    def collect(self, client: bytes, request_id: str) -> int:
        """The number of leading chunks found, once; 0 afterwards and for unknown requests."""
        session = self._sessions.get(client, request_id)
        if session is None or session.collected:
            return 0
        session.collected = True
        return session.hits

    def free(self, client: bytes, key: Key) -> None:
        """Ends the leases on the complete chunks of `[start, end)` that this request's own lookup took."""
        session = self._sessions.get(client, key.request_id)
        if session is None or key.start >= key.end:
            return
        size = self._prompts.chunk_size
        chunks, hashes = self._prompts.prefix(key)
        wanted = list(hashes)[-(-max(0, key.start) // size) : chunks]
        session.collected = True
        fingerprints = self._workers.fingerprints((key.model_name, key.world_size))
        spaces = prefixes(key.model_name, key.world_size, key.cache_salt, fingerprints)
        self._end_leases(session, [space + hash_ for hash_ in wanted for space in spaces])

    def end(self, client: bytes, request_id: str) -> None:
        """Forgets a request and ends its leases. A running retrieve has its own."""
        session = self._sessions.get(client, request_id)
        if session is not None:
            self._end_leases(session, list(session.leases))
            self._sessions.remove(session)

    def expire(self, now: float, liveness: Liveness) -> None:
        """Ends the leases, and then the sessions, of requests that were never ended."""
        for session in list(self._sessions):
            age = now - session.opened
            if age > liveness.lease_ttl and (session.leases or session.hits):
                session.hits = 0
                self._end_leases(session, list(session.leases))
            if age > liveness.session_ttl:
                self.end(session.client, session.request_id)

    def _open(self, now: float, client: bytes, request_id: str) -> Session:
        self.end(client, request_id)
        session = Session(client, request_id, now)
        self._sessions.add(session)
        return session

    def _lease(self, now: float, session: Session, found: list[Entry], readers: int) -> None:
        for entry in found:
            self._cache.lease(entry, readers)
        session.grant(found, readers)
        suffix_first = found[::-1]
        self._cache.use(suffix_first, now)
        session.suffix_first = [entry.key for entry in suffix_first]

    def _end_leases(self, session: Session, keys: list[bytes]) -> None:
        for key in reversed(keys):
            held = session.give_back(key)
            if held is not None:
                self._cache.release(*held)
        self._cache.touch(session.suffix_first)
