"""Adapters around adapters, for tests: one is slow, one fails or damages what is written and read.

They are objects around an adapter and never options in it, so that what is tested is what runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from threading import Event
from typing import TypeAlias

from engine.l2.base import L2Adapter, Stored, Usage


class WrappedAdapter(L2Adapter):
    """Passes everything on; subclasses do something before, or to the result."""

    def __init__(self, adapter: L2Adapter) -> None:
        self.adapter = adapter

    def open(self, memory: Sequence[memoryview]) -> None:
        self.adapter.open(memory)

    def close(self) -> None:
        self.adapter.close()

    def contains(self, names: Sequence[str]) -> list[bool]:
        return self.adapter.contains(names)

    def read_into(self, name: str, buffers: Sequence[memoryview]) -> int:
        return self.adapter.read_into(name, buffers)

    def write(self, name: str, buffers: Sequence[memoryview]) -> None:
        self.adapter.write(name, buffers)

    def delete(self, names: Sequence[str]) -> None:
        self.adapter.delete(names)

    def scan(self) -> Iterator[Stored]:
        return self.adapter.scan()

    def used(self) -> Usage | None:
        return self.adapter.used()


class LatencyAdapter(WrappedAdapter):
    """Every call but `close` takes `seconds` longer, until somebody calls `hurry`."""

    def __init__(self, adapter: L2Adapter, seconds: float) -> None:
        super().__init__(adapter)
        self.seconds = seconds
        self._hurry = Event()

    def hurry(self) -> None:
        """Ends the waits that go on and all later ones. From any thread."""
        self._hurry.set()

    def open(self, memory: Sequence[memoryview]) -> None:
        self._wait()
        super().open(memory)

    def contains(self, names: Sequence[str]) -> list[bool]:
        self._wait()
        return super().contains(names)

    def read_into(self, name: str, buffers: Sequence[memoryview]) -> int:
        self._wait()
        return super().read_into(name, buffers)

    def write(self, name: str, buffers: Sequence[memoryview]) -> None:
        self._wait()
        super().write(name, buffers)

    def delete(self, names: Sequence[str]) -> None:
        self._wait()
        super().delete(names)

    def scan(self) -> Iterator[Stored]:
        self._wait()
        return super().scan()

    def used(self) -> Usage | None:
        self._wait()
        return super().used()

    def _wait(self) -> None:
        self._hurry.wait(self.seconds)


class Fault(ABC):
    """What goes wrong in one call."""

    @abstractmethod
    def harm(self, content: bytes) -> bytes:
        """The bytes that are written or read instead; empty for calls without any. May raise."""


@dataclass(frozen=True)
class Raised(Fault):
    """The call raises, without any effect."""

    error: Exception

    def harm(self, content: bytes) -> bytes:
        # NOTE: A new one each time: one that was raised keeps the frames that it went through, and with them buffers.
        raise copy(self.error)


@dataclass(frozen=True)
class Flipped(Fault):
    """One bit of the object is another."""

    offset: int
    """Which byte; counted from the end if it is negative."""
    bit: int = 0

    def harm(self, content: bytes) -> bytes:
        if not content:
            return content
        harmed = bytearray(content)
        harmed[self.offset] ^= 1 << self.bit
        return bytes(harmed)


@dataclass(frozen=True)
class Truncated(Fault):
    """Only the first bytes of the object are there."""

    size: int

    def harm(self, content: bytes) -> bytes:
        return content[: self.size]


Plan: TypeAlias = Callable[[str, Sequence[str]], Fault | None]
"""What goes wrong in a call, by the name of the method and the names of the objects in it."""


class FaultyAdapter(WrappedAdapter):
    """Does what `plan` says, which is asked before every call but `close` in the thread of the call."""

    def __init__(self, adapter: L2Adapter, plan: Plan) -> None:
        super().__init__(adapter)
        self.plan = plan
        """May be replaced at any time."""

    def open(self, memory: Sequence[memoryview]) -> None:
        self._harm("open", [])
        super().open(memory)

    def contains(self, names: Sequence[str]) -> list[bool]:
        self._harm("contains", names)
        return super().contains(names)

    def read_into(self, name: str, buffers: Sequence[memoryview]) -> int:
        fault = self.plan("read_into", [name])
        if isinstance(fault, Raised):
            fault.harm(b"")
        size = super().read_into(name, buffers)
        if fault is None:
            return size
        content = b"".join(buffers)[:size]
        harmed = fault.harm(content)
        _fill(buffers, harmed)
        return size - len(content) + len(harmed)

    def write(self, name: str, buffers: Sequence[memoryview]) -> None:
        fault = self.plan("write", [name])
        if fault is None:
            super().write(name, buffers)
        else:
            super().write(name, [memoryview(fault.harm(b"".join(buffers)))])

    def delete(self, names: Sequence[str]) -> None:
        self._harm("delete", names)
        super().delete(names)

    def scan(self) -> Iterator[Stored]:
        self._harm("scan", [])
        return super().scan()

    def used(self) -> Usage | None:
        self._harm("used", [])
        return super().used()

    def _harm(self, call: str, names: Sequence[str]) -> None:
        """For calls that carry no object: nothing but an error can happen to them."""
        if fault := self.plan(call, names):
            fault.harm(b"")


def _fill(buffers: Sequence[memoryview], content: bytes) -> None:
    start = 0
    for buffer in buffers:
        part = content[start : start + len(buffer)]
        buffer[: len(part)] = part
        start += len(part)
