"""Lookups: which leading chunks of a prompt are there, and keeping them there until they were used. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from typing import Final, NamedTuple, get_args

from engine.awake import Awake
from engine.events import Effect, Probe, Probed, Reply, ReplyTo
from engine.keys import NAMESPACE_BYTES, Namespace, namespace
from engine.l1.cache import L1Cache
from engine.l1.entry import Entry
from engine.prefetches import Prefetch, Prefetches, Wanted
from engine.prompts import Prompts, RefusedError
from engine.saves import Saves
from engine.sessions import Session, Sessions
from engine.settings import QUIET_SECONDS, Liveness
from engine.status import MissReason
from engine.traffic import Traffic
from engine.wire.messages import PENDING, Key, Pending
from engine.workers import Pair, Workers

# An incomplete chunk is no miss: what lookups ask for are complete ones.
_COUNTED: Final = tuple(reason for reason in get_args(MissReason) if reason != "chunk_incomplete")

_MOST_SESSIONS: Final = 16_384
"""Requests in progress of one scheduler; far more than one has. Those that never end are forgotten after a while."""
_MOST_WAITING: Final = 1024
"""Who waits costs a look after each event."""


class Prefix(NamedTuple):
    """The leading chunks of a prompt that are there."""

    entries: list[Entry]
    """Chunk by chunk, those of every namespace."""
    missing: bytes | None
    """Key of the first object that is not there; None if all are."""


def namespaces(pair: Pair, cache_salt: str, fingerprints: Iterable[bytes]) -> list[Namespace]:
    """All those in which a chunk has to be present to be a hit."""
    model_name, world_size = pair
    return [
        namespace(model_name, world_size, shard, fingerprint, cache_salt)
        for fingerprint in fingerprints
        for shard in range(world_size)
    ]


def prefixes(pair: Pair, cache_salt: str, fingerprints: Iterable[bytes]) -> list[bytes]:
    """The beginnings of the keys in all these namespaces."""
    return [space.prefix for space in namespaces(pair, cache_salt, fingerprints)]


def wanted_rows(workers: Workers, pair: Pair, cache_salt: str, hashes: Iterable[bytes]) -> list[list[Wanted]]:
    """The objects of these chunks, chunk by chunk those of every namespace."""
    sizes = workers.object_bytes(pair)
    spaces = namespaces(pair, cache_salt, workers.fingerprints(pair))
    return [[Wanted(space.prefix + hash_, space, sizes[space.fingerprint]) for space in spaces] for hash_ in hashes]


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


class _Waiting(NamedTuple):
    """Somebody who wants to be answered when a result is known, or at a time."""

    session: Session
    to: ReplyTo
    until: float


class Lookups:
    """The scheduler's side of the protocol. Belongs to the engine thread."""

    def __init__(
        self,
        cache: L1Cache,
        sessions: Sessions,
        workers: Workers,
        prompts: Prompts,
        traffic: Traffic,
        prefetches: Prefetches,
        saves: Saves,
        awake: Awake,
    ) -> None:
        self.hit_chunks = 0
        self.missed_chunks = 0
        self.prefetched_chunks = 0
        self.prefetched_objects = 0
        self._missed: dict[MissReason, int] = dict.fromkeys(_COUNTED, 0)
        self._unexplained: list[bytes] = []
        """First missing objects of lookups whose reasons were not counted yet."""
        self._lost: dict[bytes, float] = {}
        """Connections with requests that do not stand, and since when that is known."""
        self.requests = 0
        self.without_workers = 0
        self.without_chunks = 0
        self.hit_objects = 0
        self._cache = cache
        self._sessions = sessions
        self._workers = workers
        self._prompts = prompts
        self._traffic = traffic
        self._prefetches = prefetches
        self._saves = saves
        self._awake = awake
        self._waiting: list[_Waiting] = []

    def lookup(self, now: float, client: bytes, key: Key) -> list[Effect]:
        """Finds and leases the longest prefix that every shard has; the result waits for `collect`.

        What L1 does not have is looked for in L2. A request that looks up again gets a new result, and loses what its
        last one still leased. Raises RefusedError, with a result of 0.
        """
        pair = (key.model_name, key.world_size)
        self._lost.pop(client, None)
        self.end(client, key.request_id)
        if self._sessions.count(client) >= _MOST_SESSIONS:
            raise RefusedError(f"{_MOST_SESSIONS} requests of this client were looked up and not ended")
        session = Session(client, key.request_id, self._awake.now)
        self._sessions.add(session)
        if key.num_kv_readers < 0:
            raise RefusedError(f"num_kv_readers is {key.num_kv_readers}")
        fingerprints = self._workers.fingerprints(pair)
        if not fingerprints:
            self.requests += 1
            self.without_workers += 1
            self._missed["layout_unknown"] += 1
            return []
        chunks, hashes = self._prompts.prefix(key)
        if self._prefetches.is_of_use:
            # All are needed then; what is no token is refused before anything is leased.
            hashes = iter([*hashes])
        spaces = prefixes(pair, key.cache_salt, fingerprints)
        prefix = longest_prefix(self._cache, spaces, hashes)
        session.hits = len(prefix.entries) // len(spaces)
        readers = max(1, key.num_kv_readers)
        self._lease(now, session, prefix.entries, readers)
        self.requests += 1
        self.without_chunks += not chunks
        self.hit_objects += len(prefix.entries)
        self.hit_chunks += session.hits
        self.missed_chunks += chunks - session.hits
        size = self._workers.chunk_bytes(pair)
        self._traffic.found(key, chunks, session.suffix_first, len(spaces), size, self._cache.counters.clears)
        effects = self._saves.used(prefix.entries)
        if prefix.missing is not None:
            effects += self._look_further(now, session, key, prefix, hashes, readers)
        return effects

    def _look_further(
        self, now: float, session: Session, key: Key, prefix: Prefix, hashes: Iterator[bytes], readers: int
    ) -> list[Effect]:
        """Begins to load what L2 has of the rest."""
        assert prefix.missing is not None
        if not self._prefetches.is_of_use:
            self._unexplained.append(prefix.missing)
            return []
        rest = [prefix.missing[NAMESPACE_BYTES:], *hashes]
        rows = wanted_rows(self._workers, (key.model_name, key.world_size), key.cache_salt, rest)
        tokens = (session.hits + len(rows)) * self._prompts.chunk_size
        session.prefetch = Prefetch(rows, readers, tokens, now, session.suffix_first)
        return self._prefetches.begin(now, session.prefetch)

    def missed(self) -> tuple[tuple[MissReason, int], ...]:
        """How many lookups did not find everything, by the reason of the first object that was not there.

        PERF: The reasons are looked up here, which is after the replies were sent, rather than before each of them.
        """
        for key in self._unexplained:
            # One that has come since then is being written at least.
            self._missed[self._cache.miss_reason(key)] += 1
        self._unexplained.clear()
        return tuple(self._missed.items())

    def collect(self, now: float, client: bytes, request_id: str) -> int | Pending:
        """The number of leading chunks found, once, or that it is not known yet.

        0 afterwards and for unknown requests.
        """
        session = self._sessions.get(client, request_id)
        if session is None or session.collected:
            return 0
        if not self._is_settled(session, now):
            return PENDING
        session.collected = True
        return session.hits

    def wait(self, now: float, to: ReplyTo, request_id: str, timeout: float) -> list[Effect]:
        """The same, answered when it is known, or with nil after `timeout` seconds."""
        found = self.collect(now, to.client, request_id)
        session = self._sessions.get(to.client, request_id)
        if found is not PENDING or session is None or len(self._waiting) >= _MOST_WAITING:
            return [Reply(to, found)]
        self._waiting.append(_Waiting(session, to, now + timeout if timeout > 0 else now))
        return []

    def answer(self, now: float) -> list[Effect]:
        """Answers those who wait, if there is news for them or their time is over."""
        effects: list[Effect] = []
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            is_current = self._sessions.get(each.to.client, each.session.request_id) is each.session
            found = self.collect(now, each.to.client, each.session.request_id) if is_current else 0
            if found is PENDING and now < each.until:
                self._waiting.append(each)
            else:
                effects.append(Reply(each.to, found))
        return effects

    def answer_all(self) -> list[Effect]:
        """Nothing more will come: everybody who waits is told that there is no result."""
        waiting, self._waiting = self._waiting, []
        return [Reply(each.to, 0) for each in waiting]

    @property
    def somebody_waits(self) -> bool:
        """Whether `answer` may have to answer anybody."""
        return bool(self._waiting)

    @property
    def due(self) -> float:
        """When `answer` has to be called at the latest."""
        return min((self._due_of(each) for each in self._waiting), default=inf)

    def _due_of(self, waiting: _Waiting) -> float:
        prefetch = waiting.session.prefetch
        return waiting.until if prefetch is None else min(waiting.until, self._prefetches.deadline(prefetch))

    def free(self, now: float, client: bytes, key: Key) -> None:
        """Ends the leases on the complete chunks of `[start, end)` that this request's own lookup took.

        While that still waits for L2 nothing is ended.
        """
        session = self._sessions.get(client, key.request_id)
        if session is None or key.start >= key.end:
            return
        size = self._prompts.chunk_size
        chunks, hashes = self._prompts.prefix(key)
        wanted = list(hashes)[-(-max(0, key.start) // size) : chunks]
        if not self._is_settled(session, now):
            return
        session.collected = True
        pair = (key.model_name, key.world_size)
        spaces = prefixes(pair, key.cache_salt, self._workers.fingerprints(pair))
        self._end_leases(session, [space + hash_ for hash_ in wanted for space in spaces])

    def end(self, client: bytes, request_id: str) -> None:
        """Forgets a request and ends its leases. A running retrieve has its own."""
        session = self._sessions.get(client, request_id)
        if session is not None:
            self._give_up(session)
            self._end_leases(session, list(session.leases))
            self._sessions.remove(session)

    def expire(self, liveness: Liveness) -> None:
        """Ends the leases, and then the sessions, of requests that were never ended."""
        now = self._awake.now
        for session in list(self._sessions):
            age = now - session.opened
            if age > liveness.lease_ttl and (session.leases or session.hits or session.prefetch):
                session.hits = 0
                self._give_up(session)
                self._end_leases(session, list(session.leases))
            if age > liveness.session_ttl:
                self.end(session.client, session.request_id)

    def probes(self, patience: float) -> list[Probe]:
        """Asks after the connections of schedulers with requests that are not quite new."""
        recent = self._awake.now - min(QUIET_SECONDS, patience)
        clients = dict.fromkeys(session.client for session in self._sessions if session.opened < recent)
        self._lost = {client: since for client, since in self._lost.items() if client in clients}
        return [Probe(client) for client in clients]

    def probed(self, event: Probed, patience: float) -> None:
        """Ends the requests of a scheduler whose connection has been gone for long: nobody else will.

        A worker may still retrieve what was promised before, which is why they do not end with the connection.
        """
        if event.connected:
            self._lost.pop(event.client, None)
        elif self._awake.now - self._lost.setdefault(event.client, self._awake.now) >= patience:
            for session in [session for session in self._sessions if session.client == event.client]:
                self.end(session.client, session.request_id)

    def _is_settled(self, session: Session, now: float) -> bool:
        """Whether the result is known; what L2 has added to it belongs to the session then."""
        prefetch = session.prefetch
        if prefetch is None:
            return True
        if not self._prefetches.is_decided(prefetch, now):
            return False
        session.prefetch = None
        entries = self._prefetches.take(prefetch)
        chunks = len(entries) // len(prefetch.rows[0])
        session.hits += chunks
        session.grant(entries, prefetch.readers)
        session.suffix_first = [entry.key for entry in reversed(entries)] + session.suffix_first
        self.hit_objects += len(entries)
        self.prefetched_objects += len(entries)
        self.prefetched_chunks += chunks
        if chunks < len(prefetch.rows):
            row = [wanted.key for wanted in prefetch.rows[chunks]]
            self._unexplained.append(next((key for key in row if self._cache.find(key) is None), row[0]))
        return True

    def _give_up(self, session: Session) -> None:
        """The session does not wait for L2 any more."""
        if session.prefetch is not None:
            self._prefetches.detach(session.prefetch)
            session.prefetch = None

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
