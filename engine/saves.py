"""Saves: which objects of L1 are written to which tier of L2, and when. Pure.

An object is borrowed while it is being saved: its slot stays what it is, and so does its rank. Saves never make anybody
wait: what would be too much at once is dropped and counted, and what is evicted before it was saved is lost to that
tier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from engine.events import Effect, L1Slot, Save, Saved
from engine.integrity import Integrity
from engine.l1.cache import L1Cache
from engine.l1.entry import Entry
from engine.tiers import Tier, Tiers

_MOST_BYTES: Final = 4
"""The part of L1, as its denominator, that saves of one tier hold at most."""
_AHEAD: Final = 8
"""The coldest part of L1, as its denominator, that `write_back` keeps saved."""
_LOOKS: Final = 2048
"""Objects that it looks at each time: about a millisecond."""
_LOOK_AFTER: Final = 64
"""It looks for what to save when that part of L1, as its denominator, was stored anew."""


@dataclass(slots=True, eq=False)
class _Save:
    entry: Entry
    tier: Tier


class Saves:
    """Belongs to the engine thread."""

    def __init__(self, cache: L1Cache, tiers: Tiers, integrity: Integrity) -> None:
        self._cache = cache
        self._tiers = tiers
        self._integrity = integrity
        self._tickets = count(1)
        self._running: dict[int, _Save] = {}
        self._bytes: Counter[Tier] = Counter()
        self._saving: Counter[Entry] = Counter()
        self._leaving: set[Entry] = set()
        """Those of them that L1 lets go when nobody saves them any more."""
        self._stored_bytes = 0
        """Since `write_back` looked last."""
        self._left: list[tuple[Entry, Tier]] = []
        """What `flush` has still to save, the most valuable last."""

    @property
    def left(self) -> int:
        """Objects that are being saved, or will be before the server ends."""
        return len(self._running) + len(self._left)

    def configured(self) -> None:
        """The tiers are others than before."""
        backs = [tier for tier in self._tiers if tier.settings.store_policy == "write_back"]
        self._cache.watch_saved = tuple(tier.bit for tier in backs)

    def cleared(self, name: str) -> None:
        """A tier is being emptied: what L1 has may be saved there anew."""
        tier = self._tiers.find(name)
        if tier is not None:
            counted = self._cache.counters.unsaved_evictions
            unsaved = counted.pop(tier.bit, 0)
            self._tiers.forget_saved(tier)
            counted[tier.bit] = unsaved
            self.configured()

    def damaged(self, name: str, key: bytes) -> list[Effect]:
        """What a tier has of an object is worthless: what L1 has is saved there anew."""
        tier, entry = self._tiers.find(name), self._cache.find(key)
        if tier is None or entry is None or not entry.saved & tier.bit or self._is_saving(entry, tier):
            return []
        entry.saved &= ~tier.bit
        return self._save(entry, tier)

    def unsaved(self, tier: Tier) -> int:
        """Objects that were evicted before they had been written back to this tier."""
        return self._cache.counters.unsaved_evictions[tier.bit]

    def stored(self, entries: Iterable[Entry]) -> list[Effect]:
        """These objects are ready now, in prefix order, unless they were cleared before they were."""
        effects: list[Effect] = []
        writing = [tier for tier in self._tiers.in_use if tier.settings.store_policy in ("write_through", "skip_l1")]
        for entry in entries:
            if not entry.visible:
                continue
            self._stored_bytes += entry.size
            for tier in writing:
                effects += self._save(entry, tier)
        if self._stored_bytes * _LOOK_AFTER >= self._cache.capacity:
            effects += self.write_back()
        return effects

    def used(self, entries: Sequence[Entry]) -> list[Effect]:
        """A request has used these objects."""
        selective = [tier for tier in self._tiers.in_use if tier.settings.store_policy == "selective"]
        if not selective:
            return []
        for entry in entries:
            entry.uses += 1
        return [
            effect
            for tier in selective
            for entry in entries
            if entry.uses >= tier.settings.selective_uses
            for effect in self._save(entry, tier)
        ]

    def came(self, entry: Entry, tier: Tier) -> list[Effect]:
        """An object was loaded from a tier: the faster ones take it over."""
        return [effect for faster in self._tiers.faster(tier) for effect in self._save(entry, faster)]

    def write_back(self) -> list[Effect]:
        """Saves what would be evicted next, where it was not saved yet."""
        self._stored_bytes = 0
        backs = [tier for tier in self._tiers.in_use if tier.settings.store_policy == "write_back"]
        if not backs or self._cache.used * _AHEAD < self._cache.capacity * (_AHEAD - 1):
            return []
        coldest = self._cache.coldest(_AHEAD, _LOOKS)
        effects: list[Effect] = []
        for tier in backs:
            for entry in coldest:
                # What does not fit now has its turn the next time.
                if entry.ready and self._fits(entry, tier):
                    effects += self._save(entry, tier)
        return effects

    def flush(self) -> list[Effect]:
        """The server is about to end: `write_back` saves all that it has not saved, the most valuable first."""
        backs = [tier for tier in self._tiers.in_use if tier.settings.store_policy == "write_back"]
        coldest = self._cache.coldest(1) if backs else []
        self._left = [(entry, tier) for entry in coldest for tier in backs if entry.ready]
        return self._flush_more()

    def saved(self, event: Saved) -> list[Effect]:
        """A save has ended, well or not."""
        save = self._running.pop(event.ticket)
        entry, tier = save.entry, save.tier
        self._bytes[tier] -= entry.size
        self._saving[entry] -= 1
        if event.outcome == "done":
            entry.saved |= tier.bit
            self._integrity.verified(entry.checksum is not None)
        else:
            entry.saved &= ~tier.bit
        warnings = self._integrity.corrupt(entry) if event.outcome == "damaged" else []
        self._cache.give_back(entry)
        if event.outcome == "done" and tier.settings.store_policy == "skip_l1":
            self._leaving.add(entry)
        if not self._saving[entry]:
            del self._saving[entry]
            if entry in self._leaving:
                self._leaving.remove(entry)
                self._cache.drop(entry)
        return [*warnings, *self._flush_more()]

    def _flush_more(self) -> list[Effect]:
        """As much as may be under way at the same time."""
        effects: list[Effect] = []
        while self._left:
            entry, tier = self._left[-1]
            if not self._fits(entry, tier):
                break
            self._left.pop()
            # NOTE: Nobody has kept it since it was put down here: its slot may be another object's by now.
            if self._cache.find(entry.key) is entry:
                effects += self._save(entry, tier)
        return effects

    def _is_saving(self, entry: Entry, tier: Tier) -> bool:
        return entry in self._saving and any(
            save.entry is entry and save.tier is tier for save in self._running.values()
        )

    def _fits(self, entry: Entry, tier: Tier) -> bool:
        # NOTE: One always fits, or in a small L1 large objects would never be saved.
        held = self._bytes[tier]
        return not held or held + entry.size <= self._cache.capacity // _MOST_BYTES

    def _save(self, entry: Entry, tier: Tier) -> list[Effect]:
        if entry.saved & tier.bit or tier.paused:
            return []
        if not self._fits(entry, tier):
            tier.dropped_saves += 1
            return []
        ticket = next(self._tickets)
        self._running[ticket] = _Save(entry, tier)
        self._bytes[tier] += entry.size
        self._saving[entry] += 1
        # NOTE: Set when it begins, so that it does not begin twice; taken back if it fails.
        entry.saved |= tier.bit
        self._cache.borrow(entry)
        slot = L1Slot(entry.key, entry.namespace, entry.offset, entry.size)
        return [Save(tier.name, ticket, slot, entry.checksum)]
