"""What the server must hold, knows and owes, written down naively and with every byte.

An object is named by everything that makes it what it is, in the clear: the exact tokens, not their hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.model.cast import CHUNK

PAGE = 4096


class Identity(NamedTuple):
    """One object: one chunk of one shard, with all tokens before it."""

    model: str
    world_size: int
    shard: int
    layout: str
    salt: str
    tokens: tuple[int, ...]


@dataclass(eq=False)
class Slot:
    """A place in the arena, while somebody may find, read or write it."""

    identity: Identity
    offset: int
    size: int
    data: bytes
    """What it has to contain; of a slot that is being written, what it will."""
    void: bool = False
    """Being written for nobody: it must never be found."""

    @property
    def pages(self) -> range:
        return range(self.offset // PAGE, -(-(self.offset + self.size) // PAGE))


@dataclass
class Session:
    """What one scheduler was promised for one request."""

    asked: float
    """When, by the clock."""
    opened: float
    """The same without the time in which the engine stood still."""
    hits: int = 0
    collected: bool = False
    rows: list[list[Identity]] = field(default_factory=list)
    """Chunk by chunk, the objects of all that was asked for."""
    readers: int = 1
    pending: bool = False
    """L2 may add to the hits; how much is known when the answer is."""
    shares: dict[Identity, tuple[Slot, int]] = field(default_factory=dict)
    """Objects that were found, and how many readers may still come for each."""


SessionId = tuple[bytes, str]


class Oracle:
    """The ideal cache. `arena` is only looked at."""

    def __init__(self, arena: bytearray, key_of: Callable[[Identity], bytes]) -> None:
        self._arena = arena
        self.key_of = key_of
        self._identity_of: dict[bytes, Identity] = {}
        self.present: dict[Identity, Slot] = {}
        self.ever: dict[Identity, set[bytes]] = {}
        """By object, every content that a completed store has given it."""
        self.writes: list[Slot] = []
        self.reads: list[Slot] = []
        self.saves: list[Slot] = []
        """What is being written to L2."""
        self.sessions: dict[SessionId, Session] = {}
        self.evicted = 0

    # Stores

    def wanted(self, objects: list[Identity], null: Iterable[int] = ()) -> list[int]:
        """Which chunks of a store have to be written: those that are neither there nor being written, nor null."""
        writing = {slot.identity for slot in self.writes if not slot.void}
        missing = [index for index, each in enumerate(objects) if each not in self.present and each not in writing]
        return [index for index in missing if index not in set(null)]

    def begin_write(self, identity: Identity, offset: int, size: int, data: bytes) -> Slot:
        self._identity_of[self.key_of(identity)] = identity
        slot = Slot(identity, offset, size, data)
        for other in self._occupied():
            assert not _overlap(slot, other), f"{slot} is lent while {other} is in use"
        self.writes.append(slot)
        return slot

    def end_write(self, slot: Slot, *, written: bool) -> None:
        self.writes.remove(slot)
        if written and not slot.void:
            assert self._content(slot.offset, slot.size) == slot.data, f"{slot} is published with other bytes"
            self.present[slot.identity] = slot
            self.ever.setdefault(slot.identity, set()).add(slot.data)

    # Reads

    def begin_read(self, identity: Identity, offset: int, size: int) -> Slot:
        """Somebody may read this slot now, as this object."""
        slot = self._readable(identity, offset, size)
        self.reads.append(slot)
        return slot

    def end_read(self, slot: Slot) -> None:
        self.reads.remove(slot)

    # L2

    def identity(self, key: bytes) -> Identity:
        """Of an object that was stored at some time."""
        return self._identity_of[key]

    def begin_save(self, identity: Identity, offset: int, size: int) -> Slot:
        """This slot is written to L2 from now on, as this object."""
        slot = self._readable(identity, offset, size)
        assert identity in self.present, f"{slot} is saved though it cannot be found any more"
        self.saves.append(slot)
        return slot

    def end_save(self, slot: Slot) -> None:
        self.saves.remove(slot)

    def _readable(self, identity: Identity, offset: int, size: int) -> Slot:
        data = self._content(offset, size)
        assert data in self.ever.get(identity, ()), f"bytes that nobody stored are served as {identity}"
        slot = Slot(identity, offset, size, data)
        for other in self._occupied():
            same = (other.identity, other.offset) == (identity, offset) and other not in self.writes
            assert same or not _overlap(slot, other), f"{slot} is read while {other} is in use"
        return slot

    # Lookups

    def look_up(
        self,
        now: float,
        awake: float,
        session_id: SessionId,
        chunks: list[tuple[int, ...]],
        spaces: list[Identity],
        readers: int,
        *,
        more_may_come: bool,
    ) -> None:
        """`chunks` are the prefixes asked for; a chunk is hit if it is there under each of `spaces`."""
        rows = [[space._replace(tokens=tokens) for space in spaces] for tokens in chunks] if spaces else []
        session = self.sessions[session_id] = Session(now, awake, rows=rows, readers=readers)
        for row in rows:
            if any(each not in self.present for each in row):
                session.pending = more_may_come
                break
            session.hits += 1
            session.shares.update({each: (self.present[each], readers) for each in row})

    def settle(self, session: Session, hits: int, place_of: Callable[[Identity], tuple[int, int] | None]) -> None:
        """What L2 has added is promised too. `place_of`: offset and size of what the request leases, if it does."""
        assert session.hits <= hits <= len(session.rows), "L2 has taken something away, or added what nobody asked for"
        session.pending = False
        for each in [each for row in session.rows[session.hits : hits] for each in row]:
            slot, place = self.present.get(each), place_of(each)
            if place is None:
                continue
            if slot is None or slot.offset != place[0]:
                # Cleared meanwhile, and promised all the same.
                slot = self._readable(each, *place)
            session.shares[each] = (slot, session.readers)
        session.hits = hits

    def free(self, session_id: SessionId, whole: Identity, start: int, end: int) -> None:
        """`whole`: model, salt and all tokens; the shard and the layout do not matter."""
        session = self.sessions.get(session_id)
        if session is None or start >= end:
            return
        session.collected = True
        for each in list(session.shares):
            same = (each.model, each.world_size, each.salt) == (whole.model, whole.world_size, whole.salt)
            inside = start <= len(each.tokens) - CHUNK and len(each.tokens) <= end
            if same and inside and each.tokens == whole.tokens[: len(each.tokens)]:
                del session.shares[each]

    def end(self, session_id: SessionId) -> None:
        self.sessions.pop(session_id, None)

    def promised(self, session_id: SessionId, identity: Identity) -> bool:
        session = self.sessions.get(session_id)
        return session is not None and identity in session.shares

    def use_share(self, session_id: SessionId, identity: Identity) -> None:
        """A reader has come for an object."""
        session = self.sessions.get(session_id)
        if session is None or identity not in session.shares:
            return
        slot, readers = session.shares.pop(identity)
        if readers > 1:
            session.shares[identity] = (slot, readers - 1)

    def expire(self, awake: float, lease_ttl: float, session_ttl: float) -> None:
        for session_id, session in list(self.sessions.items()):
            if awake - session.opened > lease_ttl:
                session.hits, session.shares, session.pending = 0, {}, False
            if awake - session.opened > session_ttl:
                del self.sessions[session_id]

    # What ends objects

    def clear(self) -> tuple[int, int]:
        """Returns how many objects and bytes can no longer be found."""
        cleared = len(self.present), sum(len(slot.pages) * PAGE for slot in self.present.values())
        self.present.clear()
        for slot in self.writes:
            slot.void = True
        return cleared

    def evict(self, key: bytes) -> None:
        """The cache lets an object go."""
        identity = self._identity_of[key]
        gone = self.present.pop(identity)
        self.evicted += 1
        for session_id, session in self.sessions.items():
            assert all(gone is not slot for slot, _ in session.shares.values()), f"{session_id} was promised {identity}"
        in_use = [*self.reads, *self.saves]
        assert all(slot.offset != gone.offset for slot in in_use), f"{identity} is evicted while it is read"

    # What always holds

    def held(self) -> set[int]:
        """Where the objects are that somebody reads or was promised."""
        shares = [slot for session in self.sessions.values() for slot, _ in session.shares.values()]
        return {slot.offset for slot in [*self.reads, *shares]}

    def check(self, used: int, capacity: int) -> None:
        places: dict[int, range] = {}
        for slot in self._occupied():
            assert places.setdefault(slot.offset, slot.pages) == slot.pages
        pages = [page for place in places.values() for page in place]
        assert len(pages) == len(set(pages)), "two objects share memory"
        assert len(pages) * PAGE <= used <= capacity <= len(self._arena)
        for slot in self._finished():
            assert self._content(slot.offset, slot.size) == slot.data, f"{slot} has changed"

    def check_order(self, ranked: Iterable[bytes]) -> None:
        """`ranked`: what may be evicted, first to last. A chunk comes after those that are worth nothing without it."""
        passed: set[Identity] = set()
        for key in ranked:
            identity = self._identity_of[key]
            for stop in range(CHUNK, len(identity.tokens), CHUNK):
                prefix = identity._replace(tokens=identity.tokens[:stop])
                assert prefix not in passed, f"{prefix} would go before {identity}"
            passed.add(identity)

    def _content(self, offset: int, size: int) -> bytes:
        return bytes(self._arena[offset : offset + size])

    def _finished(self) -> Iterator[Slot]:
        yield from self.present.values()
        yield from self.reads
        yield from self.saves
        for session in self.sessions.values():
            yield from (slot for slot, _ in session.shares.values())

    def _occupied(self) -> Iterator[Slot]:
        yield from self.writes
        yield from self._finished()


def _overlap(one: Slot, other: Slot) -> bool:
    return one.pages.start < other.pages.stop and other.pages.start < one.pages.stop
