"""What the tests of tiers share: a small L1, a storage that a test can hold or let fail, and what was posted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from engine.events import Event, Find, Found, L1Slot, Load, Loaded, Save, Saved
from engine.keys import Namespace
from engine.l2 import memory_l2
from engine.l2.base import L2Adapter, UnavailableError
from engine.l2.faults import Fault, FaultyAdapter, Raised, WrappedAdapter
from engine.l2.objects import object_name
from engine.l2.tier import L2Tier
from engine.settings import L2Settings
from tests.support.polling import until
from tests.unit.engine.support import FakeClock

ANSWERS = (Found, Loaded, Saved)

E = TypeVar("E", bound=Event)

SIZE = 8192
"""Bytes of an object."""
SPACE = Namespace("m", 1, 0, bytes(16), "")
DOWN = Raised(UnavailableError("the cable is cut"))


def key(number: int) -> bytes:
    return SPACE.prefix + b"%032d" % number


def content(number: int) -> bytes:
    return bytes((number + index) % 251 for index in range(SIZE))


class Held(WrappedAdapter):
    """An adapter of which a test can stop any method: callers stay in it until they are let go."""

    def __init__(self, adapter: L2Adapter) -> None:
        super().__init__(adapter)
        self.arrived: list[tuple[str, tuple[str, ...]]] = []
        """Calls that are, or were, held."""
        self._gates: dict[str, threading.Event] = {}

    def hold(self, call: str) -> None:
        self._gates[call] = threading.Event()

    def let_go(self, *calls: str) -> None:
        """Of these methods, or of all."""
        for call in calls or [*self._gates]:
            self._gates.pop(call).set()

    def contains(self, names: Sequence[str]) -> list[bool]:
        self._pass("contains", *names)
        return super().contains(names)

    def read_into(self, name: str, buffers: Sequence[memoryview]) -> int:
        self._pass("read_into", name)
        return super().read_into(name, buffers)

    def write(self, name: str, buffers: Sequence[memoryview]) -> None:
        self._pass("write", name)
        super().write(name, buffers)

    def _pass(self, call: str, *names: str) -> None:
        gate = self._gates.get(call)
        if gate is not None:
            self.arrived.append((call, names))
            assert gate.wait(30), "the test has forgotten to let go"


class Bench:
    """One tier, its storage, and an L1 of some slots."""

    def __init__(self, settings: L2Settings, clock: Callable[[], float]) -> None:
        self.memory = memory_l2.Adapter()
        self.plan: dict[str, Fault] = {}
        """By method, what goes wrong now."""
        self.faulty = FaultyAdapter(self.memory, lambda call, names: self.plan.get(call))
        self.held = Held(self.faulty)
        self.arena = bytearray(16 * SIZE)
        self.events: list[Any] = []
        self.tickets = iter(range(1, 1 << 30))
        self.tier = L2Tier(settings, self.held, memoryview(self.arena), self.events.append, clock)

    def open(self) -> None:
        self.tier.start()
        assert self.tier.await_open(20) is None

    # What the engine does

    def put(self, place: int, number: int) -> L1Slot:
        """Object `number` in slot `place`."""
        self.arena[place * SIZE : (place + 1) * SIZE] = content(number)
        return self.slot(place, number)

    def slot(self, place: int, number: int) -> L1Slot:
        return L1Slot(key(number), SPACE, place * SIZE, SIZE)

    def bytes_in(self, place: int) -> bytes:
        return bytes(self.arena[place * SIZE : (place + 1) * SIZE])

    def save(self, *numbers: int) -> list[str]:
        """Saves these objects from the slots of these numbers, and waits; returns the outcomes."""
        tickets = [self.begin_save(number) for number in numbers]
        return [self.answer(ticket, Saved).outcome for ticket in tickets]

    def begin_save(self, number: int) -> int:
        ticket = next(self.tickets)
        self.tier.submit(Save(self.tier.settings.name, ticket, self.put(number, number)))
        return ticket

    def load(self, number: int, place: int = 15) -> str:
        return self.answer(self.begin_load(number, place), Loaded).outcome

    def begin_load(self, number: int, place: int = 15) -> int:
        ticket = next(self.tickets)
        self.tier.submit(Load(self.tier.settings.name, ticket, self.slot(place, number)))
        return ticket

    def find(self, *numbers: int) -> tuple[bool, ...]:
        return self.answer(self.begin_find(*numbers), Found).present

    def begin_find(self, *numbers: int) -> int:
        ticket = next(self.tickets)
        self.tier.submit(Find(self.tier.settings.name, ticket, tuple(map(key, numbers))))
        return ticket

    def answer(self, ticket: int, kind: type[E]) -> E:
        """Waits for it; there has to be one only."""
        until(lambda: self.answers(ticket), f"an answer to {ticket}")
        (event,) = self.answers(ticket)
        assert isinstance(event, kind)
        return event

    def answers(self, ticket: int) -> list[Any]:
        return [event for event in list(self.events) if isinstance(event, ANSWERS) and event.ticket == ticket]

    # What the storage has

    def stored(self, number: int) -> bool:
        return object_name(key(number)) in self.memory._objects

    def fail(self, *calls: str) -> None:
        self.plan = dict.fromkeys(calls, DOWN)

    def wait_for_calls(self, count: int) -> None:
        until(lambda: len(self.held.arrived) >= count, f"{count} calls in the storage")


@contextmanager
def benches() -> Iterator[Callable[..., Bench]]:
    """Makes benches, and ends their threads."""
    made: list[Bench] = []

    def make(clock: Callable[[], float] | None = None, **more: Any) -> Bench:
        made.append(Bench(L2Settings("memory", "t", **more), clock or FakeClock()))
        return made[-1]

    yield make
    for bench in made:
        bench.held.let_go()
        assert bench.tier.stop(20) == []
