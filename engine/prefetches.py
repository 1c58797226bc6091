"""Prefetches: what a prompt has in L2 beyond its prefix in L1 is found there and loaded, in prefix order. Pure.

A prefetch goes chunk by chunk. Each tier in turn is asked for everything that those before it do not have; a chunk is
loaded as soon as all of its objects were found and the chunks before it were asked for. Requests that want the same
object share one load. A prefetch whose request has been answered, or is gone, goes on without it: what it loads is
there for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import NamedTuple

from engine.events import Effect, Find, Found, L1Slot, Load, Loaded
from engine.integrity import Integrity
from engine.keys import Namespace
from engine.l1.cache import L1Cache, NoSpaceError
from engine.l1.entry import Entry
from engine.tiers import Tier, Tiers


class Wanted(NamedTuple):
    """An object that is to be loaded."""

    key: bytes
    namespace: Namespace
    size: int
    """Bytes that it occupies."""


@dataclass(slots=True, eq=False)
class Prefetch:
    """One prompt's chunks behind those that L1 has."""

    rows: list[list[Wanted]]
    """Chunk by chunk, the objects of every namespace."""
    readers: int
    """Leases that it takes on each object that has come."""
    tokens: int
    started: float
    before: list[bytes] = field(default_factory=list)
    """Keys of all objects before them, last chunk first."""
    end: int = 0
    """Chunks from here on will not come."""
    next: int = 0
    """The chunk that will be asked for next."""
    where: dict[bytes, Tier | None] = field(default_factory=dict)
    """By key: the tier that has it; None if it was in L1, or on its way there, when it was to be looked for."""
    asking: list[Tier] = field(default_factory=list)
    """The tiers that have been asked and have not answered, once for each question."""
    arrived: dict[bytes, Entry] = field(default_factory=dict)
    """By key: what has come, with `readers` leases on each."""
    is_detached: bool = False
    """Nobody waits for it any more; it takes no leases."""
    loading: int = 0
    """Objects on their way that it asked for or waits for."""
    place: dict[bytes, int] = field(init=False)
    """By key, its chunk."""
    _complete: int = 0

    def __post_init__(self) -> None:
        self.place = {wanted.key: index for index, row in enumerate(self.rows) for wanted in row}

    @property
    def complete(self) -> int:
        """Leading chunks of which every object has come."""
        # PERF: What has come stays, so the count goes on from where it was.
        while self._complete < self.end and all(each.key in self.arrived for each in self.rows[self._complete]):
            self._complete += 1
        return self._complete

    @property
    def has_ended(self) -> bool:
        """Nothing more comes."""
        return not self.loading and not self.asking

    @property
    def suffix_first(self) -> list[bytes]:
        """All keys of the prompt, last chunk first."""
        return [wanted.key for row in reversed(self.rows) for wanted in reversed(row)] + self.before

    def miss(self, key: bytes) -> None:
        """An object does not come: neither does what stands behind it."""
        # What is here already stays: a clear may have doomed one load of an object that was stored again meanwhile.
        if key not in self.arrived:
            self.end = min(self.end, self.place[key])
            self.next = min(self.next, self.end)


@dataclass(slots=True, eq=False)
class _Load:
    """One object on its way into L1."""

    entry: Entry
    tier: Tier
    waiting: list[Prefetch]


class _Search(NamedTuple):
    """What a tier was asked."""

    prefetch: Prefetch
    tier: Tier
    keys: tuple[bytes, ...]


class Prefetches:
    """All that run. Belongs to the engine thread."""

    def __init__(
        self, cache: L1Cache, tiers: Tiers, came: Callable[[Entry, Tier], list[Effect]], integrity: Integrity
    ) -> None:
        """`came` is told of each object that was loaded, with its tier."""
        self._cache = cache
        self._tiers = tiers
        self._came = came
        self._integrity = integrity
        self._tickets = count(1)
        self._searches: dict[int, _Search] = {}
        self._loads: dict[int, _Load] = {}
        self._by_key: dict[bytes, _Load] = {}
        """The loads whose objects can still be found when they have come."""

    @property
    def is_of_use(self) -> bool:
        """Whether there is a tier to ask."""
        return bool(self._tiers.in_use)

    @property
    def running(self) -> int:
        """Questions to tiers, and objects on their way, that nothing has come of yet."""
        return len(self._searches) + len(self._loads)

    def begin(self, now: float, prefetch: Prefetch) -> list[Effect]:
        """Asks the first tier. A prefetch of which nothing can come has ended at once: its `end` is 0."""
        tiers = self._tiers.in_use
        prefetch.end = len(prefetch.rows) if tiers else 0
        unknown = []
        for row in prefetch.rows[: prefetch.end]:
            for wanted in row:
                if wanted.key in self._by_key or self._cache.find(wanted.key) is not None:
                    prefetch.where[wanted.key] = None
                else:
                    unknown.append(wanted.key)
        return [*self._search(prefetch, tiers[0], unknown), *self._advance(now, prefetch)] if tiers else []

    def found(self, event: Found) -> list[Effect]:
        """A tier has said what it has: the next one is asked for the rest."""
        prefetch, tier, keys = self._searches.pop(event.ticket)
        prefetch.asking.remove(tier)
        absent = []
        for key, is_there in zip(keys, event.present, strict=True):
            if is_there:
                prefetch.where[key] = tier
            else:
                absent.append(key)
        behind = self._behind(tier)
        absent = [key for key in absent if prefetch.place[key] < prefetch.end]
        search = self._search(prefetch, behind, absent) if behind else []
        effects = [*search, *self._advance(event.now, prefetch)]
        self._put_in_order(prefetch)
        return effects

    def loaded(self, event: Loaded) -> list[Effect]:
        """An object has come, or will not: it is another tier's turn then, for those who wait for it."""
        load = self._loads.pop(event.ticket)
        entry = load.entry
        if self._by_key.get(entry.key) is load:
            del self._by_key[entry.key]
        for prefetch in load.waiting:
            prefetch.loading -= 1
        effects = self._arrived(event, load) if event.outcome == "done" else self._failed(event, load)
        for prefetch in load.waiting:
            self._put_in_order(prefetch)
        return effects

    def is_decided(self, prefetch: Prefetch, now: float) -> bool:
        """Whether its number of complete chunks is the answer: nothing more comes, or not in time."""
        complete = prefetch.complete
        return complete == prefetch.end or self.deadline(prefetch) <= now

    def deadline(self, prefetch: Prefetch) -> float:
        """When the wait for its first incomplete chunk is over; infinite if that has come or will not come."""
        complete = prefetch.complete
        if complete == prefetch.end:
            return inf
        row = prefetch.rows[complete]
        tiers = {load.tier for wanted in row if (load := self._by_key.get(wanted.key))}
        # Tiers that are being asked for later chunks only are not waited for: these may be slower ones.
        if any(wanted.key not in prefetch.where for wanted in row):
            tiers.update(prefetch.asking)
        return prefetch.started + min((tier.wait(prefetch.tokens) for tier in tiers), default=-inf)

    def take(self, prefetch: Prefetch) -> list[Entry]:
        """The objects of its complete chunks, chunk by chunk, whose leases are the taker's from now on.

        The prefetch goes on without anybody who waits for it.
        """
        rows = prefetch.rows[: prefetch.complete]
        taken = [prefetch.arrived.pop(wanted.key) for row in rows for wanted in row]
        self.detach(prefetch)
        return taken

    def detach(self, prefetch: Prefetch) -> None:
        """Nobody waits for it any more; what it holds is let go."""
        prefetch.is_detached = True
        left, prefetch.arrived = prefetch.arrived, {}
        for entry in reversed(left.values()):
            self._cache.release(entry, prefetch.readers)
        if left:
            self._put_in_order(prefetch)

    def _put_in_order(self, prefetch: Prefetch) -> None:
        """When the last object of a prompt that nobody waits for has come: suffixes go before their prefixes."""
        if prefetch.is_detached and prefetch.has_ended:
            self._cache.touch(prefetch.suffix_first)

    def _search(self, prefetch: Prefetch, tier: Tier, keys: Sequence[bytes]) -> list[Effect]:
        if not keys:
            return []
        ticket = next(self._tickets)
        self._searches[ticket] = _Search(prefetch, tier, tuple(keys))
        prefetch.asking.append(tier)
        return [Find(tier.name, ticket, tuple(keys))]

    def _behind(self, tier: Tier) -> Tier | None:
        """The tier that is asked after this one."""
        tiers = self._tiers.in_use
        return next(iter(tiers[tiers.index(tier) + 1 :]), None) if tier in tiers else None

    def _advance(self, now: float, prefetch: Prefetch) -> list[Effect]:
        """Asks for the chunks that were found, up to one that was not."""
        effects: list[Effect] = []
        while prefetch.next < prefetch.end:
            row = prefetch.rows[prefetch.next]
            if any(wanted.key not in prefetch.where for wanted in row):
                if not prefetch.asking:
                    prefetch.end = prefetch.next
                break
            for column, wanted in enumerate(row):
                if not self._fetch(now, prefetch, column, wanted, effects):
                    prefetch.end = prefetch.next
                    return effects
            prefetch.next += 1
        return effects

    def _fetch(self, now: float, prefetch: Prefetch, column: int, wanted: Wanted, effects: list[Effect]) -> bool:
        """Gets one object on its way, unless it is; False if it cannot be had."""
        entry = self._cache.find(wanted.key)
        load = self._by_key.get(wanted.key)
        if entry is not None:
            self._take(prefetch, entry)
        elif load is not None:
            if prefetch not in load.waiting:
                load.waiting.append(prefetch)
                prefetch.loading += 1
        else:
            tier = prefetch.where[wanted.key]
            if tier is None or tier.paused:
                return False
            entry = self._reserve(now, wanted, self._parent(prefetch, column))
            if entry is None:
                return False
            effects.append(self._load(entry, tier, prefetch))
        return True

    def _parent(self, prefetch: Prefetch, column: int) -> Entry | None:
        """The object before that of the next chunk, which may be on its way itself."""
        if prefetch.next:
            return self._cache.entry(prefetch.rows[prefetch.next - 1][column].key)
        # NOTE: By its key, since nobody may have kept it: it must be there now.
        place = len(prefetch.rows[0]) - 1 - column
        return self._cache.entry(prefetch.before[place]) if prefetch.before else None

    def _reserve(self, now: float, wanted: Wanted, parent: Entry | None) -> Entry | None:
        if self._cache.holds(wanted.key):
            # A worker is writing it: that may take longer than anybody would wait.
            return None
        try:
            return self._cache.reserve(wanted.key, wanted.size, wanted.namespace, now, parent)
        except NoSpaceError as error:
            self._cache.refuse([wanted.key], error.reason)
            return None

    def _load(self, entry: Entry, tier: Tier, prefetch: Prefetch) -> Load:
        ticket = next(self._tickets)
        load = self._loads[ticket] = self._by_key[entry.key] = _Load(entry, tier, [prefetch])
        prefetch.loading += 1
        return Load(tier.name, ticket, L1Slot(entry.key, entry.namespace, load.entry.offset, entry.size))

    def _take(self, prefetch: Prefetch, entry: Entry) -> None:
        """An object is there: whoever waits for it holds it."""
        if not prefetch.is_detached and entry.key not in prefetch.arrived:
            self._cache.lease(entry, prefetch.readers)
            prefetch.arrived[entry.key] = entry

    def _arrived(self, event: Loaded, load: _Load) -> list[Effect]:
        load.tier.loaded_objects += 1
        if event.checksum is not None:
            self._integrity.keep([load.entry], [event.checksum])
        load.entry.saved |= load.tier.bit
        self._cache.commit(load.entry)
        if not load.entry.visible:
            # Cleared meanwhile, so the other tiers are not asked either.
            for prefetch in load.waiting:
                prefetch.miss(load.entry.key)
            return []
        for prefetch in load.waiting:
            self._take(prefetch, load.entry)
        return self._came(load.entry, load.tier)

    def _failed(self, event: Loaded, load: _Load) -> list[Effect]:
        if event.outcome == "damaged":
            self._cache.history.left(load.entry.key, "quarantined")
        self._cache.abort(load.entry)
        return self._missing(load)

    def _missing(self, load: _Load) -> list[Effect]:
        """The prompts of those who waited for it end before it, unless another tier has it."""
        effects: list[Effect] = []
        key = load.entry.key
        behind = self._behind(load.tier)
        for prefetch in load.waiting:
            if behind is None:
                prefetch.miss(key)
            elif prefetch.place[key] < prefetch.end:
                prefetch.next = min(prefetch.next, prefetch.place[key])
                del prefetch.where[key]
                effects += self._search(prefetch, behind, [key])
        return effects
