"""Lookups: which leading chunks of a prompt are there, and keeping them there until they were used. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from engine.keys import namespace
from engine.l1.cache import Entry, L1Cache
from engine.prompts import Prompts, RefusedError
from engine.sessions import Session, Sessions, give_back
from engine.settings import Liveness
from engine.wire.messages import Key
from engine.workers import Workers


class Lookups:
    """The scheduler's side of the protocol. Belongs to the engine thread."""

    def __init__(self, cache: L1Cache, sessions: Sessions, workers: Workers, prompts: Prompts) -> None:
        self.hit_chunks = 0
        self.missed_chunks = 0
        self.requests = 0
        self.without_workers = 0
        self.without_chunks = 0
        self.hit_objects = 0
        self._cache = cache
        self._sessions = sessions
        self._workers = workers
        self._prompts = prompts

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
            return
        chunks, hashes = self._prompts.prefix(key)
        spaces = self._namespaces(key, fingerprints)
        found = self._longest_prefix(spaces, hashes)
        session.hits = len(found) // len(spaces)
        self._lease(session, found, max(1, key.num_kv_readers))
        self.requests += 1
        self.without_chunks += not chunks
        self.hit_objects += len(found)
        self.hit_chunks += session.hits
        self.missed_chunks += chunks - session.hits

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
        spaces = self._namespaces(key, fingerprints)
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

    @staticmethod
    def _namespaces(key: Key, fingerprints: Iterable[bytes]) -> list[bytes]:
        return [
            namespace(key.model_name, key.world_size, shard, fingerprint, key.cache_salt)
            for fingerprint in fingerprints
            for shard in range(key.world_size)
        ]

    def _longest_prefix(self, spaces: list[bytes], hashes: Iterator[bytes]) -> list[Entry]:
        """The objects of the leading chunks that are present in every namespace, chunk by chunk."""
        found: list[Entry] = []
        find = self._cache.find
        for hash_ in hashes:
            row = []
            for space in spaces:
                entry = find(space + hash_)
                if entry is None:
                    return found
                row.append(entry)
            found += row
        return found

    def _lease(self, session: Session, found: list[Entry], readers: int) -> None:
        for entry in found:
            self._cache.lease(entry, readers)
            session.leases[entry.key] = (entry, readers)
        session.suffix_first = [entry.key for entry in reversed(found)]

    def _end_leases(self, session: Session, keys: list[bytes]) -> None:
        for entry, count in give_back(session, reversed(keys)):
            self._cache.release(entry, count)
        self._cache.touch(session.suffix_first)
