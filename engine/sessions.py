"""Requests in progress: the result of each one's lookup, and the leases that keep its hits in place.

A hit is a promise: the objects a lookup found stay until they were retrieved, given back, or their time is over. The
leases are owned by the request, counted per object, so that a late or repeated release cannot touch another request's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from engine.l1.entry import Entry
from engine.prefetches import Prefetch
from engine.roster import Page, Roster


class Session:
    """One request of one scheduler. Request ids are unique within a connection only, so that is part of it."""

    __slots__ = (
        "client",
        "collected",
        "hits",
        "leased_bytes",
        "leases",
        "opened",
        "prefetch",
        "request_id",
        "seat",
        "suffix_first",
    )

    def __init__(self, client: bytes, request_id: str, opened: float) -> None:
        self.client = client
        self.request_id = request_id
        self.opened = opened
        """When the newest lookup was made, in the seconds of `Awake.now`."""
        self.hits = 0
        """Leading chunks that the lookup found."""
        self.prefetch: Prefetch | None = None
        """What L2 may add to the hits; None once that is decided."""
        self.collected = False
        """The scheduler has been told."""
        self.leases: dict[bytes, tuple[Entry, int]] = {}
        """By object key: the object, and how many readers may still come."""
        self.leased_bytes = 0
        """Of the objects in `leases`."""
        self.seat = -1
        self.suffix_first: list[bytes] = []
        """Keys of all objects found, last chunk first: the order in which they are touched."""

    def grant(self, entries: Iterable[Entry], readers: int) -> None:
        """The request holds this many leases on each of the objects from now on."""
        leases, size = self.leases, 0
        for entry in entries:
            leases[entry.key] = (entry, readers)
            size += entry.size
        self.leased_bytes += size

    def give_back(self, key: bytes) -> tuple[Entry, int] | None:
        """Takes all that is left of a lease out of the session: the object, and how many leases."""
        held = self.leases.pop(key, None)
        if held is not None:
            self.leased_bytes -= held[0].size
        return held

    def take(self, key: bytes) -> Entry | None:
        """Takes one of the leases on an object out of the session."""
        held = self.leases.get(key)
        if held is None:
            return None
        entry, count = held
        if count > 1:
            self.leases[key] = (entry, count - 1)
        else:
            self.give_back(key)
        return entry


class Sessions:
    """All sessions. Belongs to the engine thread; knows nothing of the cache: the caller ends the leases it takes."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[bytes, str], Session] = {}
        self._by_request: dict[str, list[Session]] = {}
        self._of_client: dict[bytes, int] = {}
        self._roster = Roster[Session]()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def page(self, seat: int, count: int) -> Page[Session]:
        """The sessions on `count` seats."""
        return self._roster.page(seat, count)

    def get(self, client: bytes, request_id: str) -> Session | None:
        return self._sessions.get((client, request_id))

    def count(self, client: bytes) -> int:
        """How many requests of one scheduler are in progress."""
        return self._of_client.get(client, 0)

    def add(self, session: Session) -> None:
        self._of_client[session.client] = self.count(session.client) + 1
        self._sessions[session.client, session.request_id] = session
        session.seat = self._roster.add(session)
        self._by_request.setdefault(session.request_id, []).append(session)

    def remove(self, session: Session) -> None:
        del self._sessions[session.client, session.request_id]
        left = self._of_client.pop(session.client) - 1
        if left:
            self._of_client[session.client] = left
        self._roster.remove(session.seat)
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
        return sessions[0].take(key)

    def held(self, request_id: str, key: bytes) -> Entry | None:
        """The object, if a request of this id holds a lease on it."""
        sessions = self._by_request.get(request_id, ())
        return next((session.leases[key][0] for session in sessions if key in session.leases), None)
