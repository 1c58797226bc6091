"""The tasks about objects: which are there, load one into its slot, save one from its slot."""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from engine.events import Event, Find, Found, L1Slot, Load, Loaded, Save, Saved
from engine.l2.base import AbsentError, L2Adapter
from engine.l2.envelope import HEADER_BYTES, EnvelopeError, PayloadHash, check, seal
from engine.l2.metering import Metering
from engine.l2.tasks import Task
from engine.status import TierOutcome

logger = logging.getLogger(__name__)

_QUARANTINED: Final = 65_536
"""Names that are remembered as bad."""


def object_name(key: bytes) -> str:
    """Of the object of a key, in every storage."""
    return key.hex()


class Quarantine:
    """Names of objects that were not what they should be, until they are written anew. Safe for threads."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str) -> None:
        with self._lock:
            self._names[name] = None
            if len(self._names) > _QUARANTINED:
                self._names.popitem(last=False)

    def remove(self, names: Iterable[str]) -> None:
        with self._lock:
            for name in names:
                self._names.pop(name, None)


@dataclass(frozen=True, slots=True)
class Bench:
    """What the tasks about objects share. Used from any thread."""

    tier: str
    arena: memoryview
    """The bytes of L1, writable."""
    post: Callable[[Event], None]
    clock: Callable[[], float]
    metering: Metering
    quarantine: Quarantine

    def present(self, adapter: L2Adapter, names: list[str]) -> tuple[bool, ...]:
        """Which objects can be loaded. Raises L2Error."""
        began = self.clock()
        present = adapter.contains(names)
        if len(present) != len(names):
            raise AssertionError(f"{len(present)} answers to {len(names)} names")
        found = tuple(there and name not in self.quarantine for name, there in zip(names, present, strict=True))
        self.metering.looked(sum(found), len(found) - sum(found), self.clock() - began)
        return found

    def leading(self, adapter: L2Adapter, names: list[str]) -> tuple[bool, ...]:
        """The same for a prompt's objects in their order, where those behind a missing one need not be found.

        Raises L2Error.
        """
        batch = adapter.first_names or len(names)
        found: tuple[bool, ...] = ()
        while len(found) < len(names) and all(found):
            found += self.present(adapter, names[len(found) : len(found) + batch])
            batch *= 2
        return found + (False,) * (len(names) - len(found))


class FindTask(Task):
    """Answers a `Find`."""

    def __init__(self, bench: Bench, effect: Find, since: float) -> None:
        super().__init__(since)
        self._bench = bench
        self._effect = effect

    def perform(self, adapter: L2Adapter, header: memoryview) -> None:
        self._answer(self._bench.leading(adapter, [object_name(key) for key in self._effect.keys]))

    def give_up(self, outcome: TierOutcome) -> None:
        self._answer((False,) * len(self._effect.keys))

    def _answer(self, present: tuple[bool, ...]) -> None:
        self._bench.post(Found(self._bench.clock(), self._effect.ticket, present))
        self.is_answered = True


class _MoveTask(Task):
    """A load or save: counts how it ends, and says so."""

    direction: Literal["load", "save"]

    def __init__(self, bench: Bench, effect: Load | Save, since: float) -> None:
        super().__init__(since)
        self._bench = bench
        self._ticket = effect.ticket
        self._slot: L1Slot = effect.slot
        self._name = object_name(effect.slot.key)

    def give_up(self, outcome: TierOutcome) -> None:
        """The slot is not used."""
        self._end(outcome)

    def _end(self, outcome: TierOutcome) -> None:
        self._bench.metering.ended(self.direction, outcome)
        self._bench.post(self._ended(self._bench.clock(), outcome))
        self.is_answered = True

    @abstractmethod
    def _ended(self, now: float, outcome: TierOutcome) -> Event:
        """What the engine is told."""

    def _payload(self) -> memoryview:
        return self._bench.arena[self._slot.offset : self._slot.offset + self._slot.size]


class LoadTask(_MoveTask):
    """Carries out a `Load`: what is in the slot afterwards is the object, checked, or nobody gets to see it."""

    direction = "load"
    _checksum: bytes | None = None

    def perform(self, adapter: L2Adapter, header: memoryview) -> None:
        bench, began = self._bench, self._bench.clock()
        with self._payload() as payload:
            try:
                seen = PayloadHash()
                size = adapter.read_pieces(self._name, [header, payload], seen.add)
                problem = self._problem(size, header, seen)
            except AbsentError:
                self._end("absent")
                return
        if problem is None:
            self._checksum = seen.digest()
            bench.metering.moved("load", self._slot.size, bench.clock() - began)
            self._end("done")
        else:
            bench.quarantine.add(self._name)
            logger.warning("L2 %s: the object %s is put aside: %s", bench.tier, self._name, problem)
            self._end("damaged")

    def _ended(self, now: float, outcome: TierOutcome) -> Event:
        return Loaded(now, self._ticket, outcome, self._checksum)

    def _problem(self, size: int, header: memoryview, payload: PayloadHash) -> str | None:
        if size != HEADER_BYTES + self._slot.size:
            return f"it has {size} bytes instead of {HEADER_BYTES + self._slot.size}"
        try:
            check(self._slot.key, self._slot.namespace, header, payload)
        except EnvelopeError as error:
            return str(error)
        return None


class SaveTask(_MoveTask):
    """Carries out a `Save`."""

    direction = "save"

    def __init__(self, bench: Bench, effect: Save, since: float, cleared: Callable[[], float]) -> None:
        """`cleared`: when everything was last asked to be cleared; what began before that must not appear again."""
        super().__init__(bench, effect, since)
        self._checksum = effect.checksum
        self._cleared = cleared
        self._was_tried = False
        """It may have been written, though the storage said that it failed."""

    def perform(self, adapter: L2Adapter, header: memoryview) -> None:
        if self.since <= self._cleared():
            if self._was_tried:
                adapter.delete([self._name])
            self._end("late")
            return
        bench, began = self._bench, self._bench.clock()
        with self._payload() as payload:
            try:
                checksum = seal(self._slot.key, self._slot.namespace, payload, header)
            except EnvelopeError as error:
                logger.warning("L2 %s: an object cannot be saved: %s", bench.tier, error)
                self._end("refused")
                return
            if self._checksum not in (None, checksum):
                self._end("damaged")
                return
            self._was_tried = True
            adapter.write(self._name, [header, payload])
        if self.since <= self._cleared():
            adapter.delete([self._name])
            self._end("late")
            return
        bench.quarantine.remove([self._name])
        bench.metering.moved("save", self._slot.size, bench.clock() - began)
        self._end("done")

    def _ended(self, now: float, outcome: TierOutcome) -> Event:
        return Saved(now, self._ticket, outcome)
