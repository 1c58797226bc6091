"""Prefixes that operators want to stay in L1: they are leased until their time is over. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from blake3 import blake3

from engine.answers import PinReport, PinReports, Unpinned
from engine.commands import Command, DropPins, ListPins, SetPin, SetPinBudget
from engine.errors import PinError
from engine.events import CommandAsked, CommandDone, Effect
from engine.l1.cache import L1Cache
from engine.l1.entry import Entry
from engine.lookups import prefixes
from engine.operators import CommandHandler
from engine.workers import Workers

_MOST_PINS: Final = 1000
_PART: Final = 512
"""Keys that are looked for in a second, and at once when a pin is set: well under a millisecond."""


@dataclass(slots=True)
class _Pin:
    """One pinned prefix, with the objects that it holds: one lease on each."""

    id: str
    model_name: str
    world_size: int | None
    cache_salt: str
    hashes: tuple[bytes, ...]
    expires: float
    entries: dict[bytes, Entry] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return sum(entry.size for entry in self.entries.values())


class Pins:
    """Belongs to the engine thread.

    What is there when a pin is set is held at once. What comes later, or from a worker that registers later, is found
    by a walk over all pins, a part every second; what a clear has doomed is let go by the same walk.
    """

    def __init__(self, cache: L1Cache, workers: Workers, budget: int | None) -> None:
        """`budget` in bytes; None stands for a quarter of L1."""
        self._cache = cache
        self._workers = workers
        self._limit = budget
        self._pins: dict[str, _Pin] = {}
        self._held: dict[bytes, int] = {}
        """By key of each object that is held: by how many pins."""
        self._bytes = 0
        """Of these objects, each counted once."""
        self._walk: Iterator[tuple[_Pin, bytes]] = iter(())

    def handlers(self) -> dict[type[Command[Any]], CommandHandler]:
        """By command, what carries it out; raises PinError."""
        return {
            SetPin: self._set,
            DropPins: self._drop,
            ListPins: lambda event, _: [CommandDone(event.ticket, self._reports(event.now))],
            SetPinBudget: self._set_budget,
        }

    def tick(self, now: float) -> None:
        """Ends the pins whose time is over, and looks for a part of what the others want."""
        for pin in [pin for pin in self._pins.values() if pin.expires <= now]:
            self._end(pin)
        looked = list(islice(self._walk, _PART))
        for pin, key in looked:
            self._look(pin, key)
        if len(looked) < _PART:
            self._walk = self._everything()

    @property
    def budget(self) -> int:
        """Bytes that may be held."""
        return self._cache.capacity // 4 if self._limit is None else self._limit

    def _set(self, event: CommandAsked, command: SetPin) -> list[Effect]:
        if not command.hashes:
            raise PinError("there is no complete chunk to pin")
        pin_id = _id(command)
        pin = self._pins.get(pin_id)
        if pin is None:
            pin = self._new(pin_id, command, event.now)
        pin.expires = event.now + command.ttl
        for key in islice(self._keys(pin), _PART):
            self._look(pin, key)
        return [CommandDone(event.ticket, _report(pin, event.now))]

    def _new(self, pin_id: str, command: SetPin, now: float) -> _Pin:
        if len(self._pins) >= _MOST_PINS:
            raise PinError(f"there are {_MOST_PINS} pins already, which is the most: remove one first")
        pin = _Pin(pin_id, command.model_name, command.world_size, command.cache_salt, command.hashes, now)
        missing = [key for key in self._keys(pin) if key not in self._held]
        wanted = self._bytes + sum(entry.size for key in missing if (entry := self._cache.find(key)) is not None)
        if wanted > self.budget:
            raise PinError(f"{wanted} bytes would be pinned, and the budget is {self.budget} (l1.pin_budget)")
        self._pins[pin_id] = pin
        return pin

    def _drop(self, event: CommandAsked, command: DropPins) -> list[Effect]:
        before = self._bytes
        found = [self._pins[pin_id] for pin_id in dict.fromkeys(command.ids) if pin_id in self._pins]
        for pin in found:
            self._end(pin)
        missing = len(set(command.ids)) - len(found)
        return [CommandDone(event.ticket, Unpinned(len(found), before - self._bytes, missing))]

    def _set_budget(self, event: CommandAsked, command: SetPinBudget) -> list[Effect]:
        self._limit = command.budget
        return [CommandDone(event.ticket, None)]

    def _everything(self) -> Iterator[tuple[_Pin, bytes]]:
        """All that is held and wanted; what is pinned or ends meanwhile does not matter."""
        for pin in list(self._pins.values()):
            # What is held need not be wanted any more: its worker may be gone.
            for key in dict.fromkeys([*pin.entries, *self._keys(pin)]):
                yield pin, key

    def _keys(self, pin: _Pin) -> Iterator[bytes]:
        """Of its objects in all namespaces of the model's workers, chunk by chunk."""
        pairs = {worker.pair for worker in self._workers if worker.model_name == pin.model_name}
        spaces = [
            space
            for model_name, world_size in sorted(pairs)
            if pin.world_size in (None, world_size)
            for space in prefixes(
                (model_name, world_size), pin.cache_salt, self._workers.fingerprints((model_name, world_size))
            )
        ]
        return (space + hash_ for hash_ in pin.hashes for space in spaces)

    def _look(self, pin: _Pin, key: bytes) -> None:
        """Holds the object if it is there and the budget allows it; lets it go if it is doomed."""
        if self._pins.get(pin.id) is not pin:
            return
        held = pin.entries.get(key)
        if held is not None and not held.visible:
            self._let_go(pin, held)
        if key not in pin.entries:
            entry = self._cache.find(key)
            if entry is not None and (key in self._held or self._bytes + entry.size <= self.budget):
                self._hold(pin, entry)

    def _hold(self, pin: _Pin, entry: Entry) -> None:
        self._cache.lease(entry)
        pin.entries[entry.key] = entry
        holders = self._held[entry.key] = self._held.get(entry.key, 0) + 1
        if holders == 1:
            self._bytes += entry.size

    def _let_go(self, pin: _Pin, entry: Entry) -> None:
        del pin.entries[entry.key]
        self._held[entry.key] -= 1
        if not self._held[entry.key]:
            del self._held[entry.key]
            self._bytes -= entry.size
        self._cache.release(entry)

    def _end(self, pin: _Pin) -> None:
        del self._pins[pin.id]
        for entry in reversed(list(pin.entries.values())):
            self._let_go(pin, entry)

    def _reports(self, now: float) -> PinReports:
        return PinReports(self.budget, self._bytes, tuple(_report(pin, now) for pin in self._pins.values()))


def _report(pin: _Pin, now: float) -> PinReport:
    return PinReport(
        pin.id,
        pin.model_name,
        pin.cache_salt,
        len(pin.hashes),
        len(pin.entries),
        pin.size,
        pin.expires - now,
    )


def _id(command: SetPin) -> str:
    """The same for the same prefix."""
    what = repr((command.model_name, command.world_size, command.cache_salt))
    return blake3(what.encode() + command.hashes[-1]).hexdigest(8)
