"""Requests in progress: the result of each one's lookup, and the leases that keep its hits in place.

A hit is a promise: the objects a lookup found stay until they were retrieved, given back, or their time is over. The
leases are owned by the request, counted per object, so that a late or repeated release cannot touch another request's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from engine.l1.cache import Entry


class Session:
    """One request of one scheduler. Request ids are unique within a connection only, so that is part of it."""

    __slots__ = ("client", "collected", "hits", "leases", "opened", "request_id", "suffix_first")

    def __init__(self, client: bytes, request_id: str, opened: float) -> None:
        self.client = client
        self.request_id = request_id
        self.opened = opened
        """When the newest lookup was made."""
        self.hits = 0
        """Leading chunks that the lookup found."""
        self.collected = False
        """The scheduler has been told."""
        self.leases: dict[bytes, tuple[Entry, int]] = {}
        """By object key: the object, and how many readers may still come."""
        self.suffix_first: list[bytes] = []
        """Keys of all objects found, last chunk first: the order in which they are touched."""


class Sessions:
    """All sessions. Belongs to the engine thread; knows nothing of the cache: the caller ends the leases it takes."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[bytes, str], Session] = {}
        self._by_request: dict[str, list[Session]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, client: bytes, request_id: str) -> Session | None:
        return self._sessions.get((client, request_id))

    def add(self, session: Session) -> None:
        self._sessions[session.client, session.request_id] = session
        self._by_request.setdefault(session.request_id, []).append(session)

    def remove(self, session: Session) -> None:
        del self._sessions[session.client, session.request_id]
        others = self._by_request[session.request_id]
        others.remove(session)
        if not others:
            del self._by_request[session.request_id]

    def take(self, request_id: str, key: bytes) -> Entry | None:
        """One reader's share of a lease that the request of this id holds on this object; the taker owns it now.

        None if several schedulers have a request of this id: a worker does not say whose it is, and none of them must
        lose what it was promised.
        """
        sessions = self._by_request.get(request_id)
        if sessions is None or len(sessions) > 1:
            return None
        held = sessions[0].leases.get(key)
        return None if held is None else _take_one(sessions[0], key, held)

    def held(self, request_id: str, key: bytes) -> Entry | None:
        """The object, if a request of this id holds a lease on it."""
        sessions = self._by_request.get(request_id, ())
        return next((session.leases[key][0] for session in sessions if key in session.leases), None)


def give_back(session: Session, keys: Iterable[bytes]) -> list[tuple[Entry, int]]:
    """Takes all that is left of these leases out of the session: (object, count)."""
    return [held for key in keys if (held := session.leases.pop(key, None)) is not None]


def _take_one(session: Session, key: bytes, held: tuple[Entry, int]) -> Entry:
    entry, count = held
    if count > 1:
        session.leases[key] = (entry, count - 1)
    else:
        del session.leases[key]
    return entry
