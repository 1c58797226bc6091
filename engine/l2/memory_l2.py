"""L2 in this process's memory: for tests, and the adapter to copy when you write one.

What an adapter is, is said in `base.py`; `AdapterSuite` in the tests checks it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from threading import Lock

from engine.l2.base import AbsentError, FullError, L2Adapter, Stored, Usage


class Adapter(L2Adapter):
    """Objects in a dictionary. They stay over `close`, as they would in a real storage, and end with the process."""

    def __init__(self, capacity: int | None = None) -> None:
        """`capacity` is in bytes of objects; the least recently read or written go first. Without it nothing goes."""
        self._capacity = capacity
        self._lock = Lock()
        """Guards the two below; taken for as long as a dictionary takes, never while bytes are copied."""
        self._objects: OrderedDict[str, bytes] = OrderedDict()
        """The least recently used first."""
        self._bytes = 0

    def open(self, memory: Sequence[memoryview]) -> None:
        """There is nothing to connect to, and any memory can be copied."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def contains(self, names: Sequence[str]) -> list[bool]:
        with self._lock:
            return [name in self._objects for name in names]

    def read_into(self, name: str, buffers: Sequence[memoryview]) -> int:
        with self._lock:
            content = self._present(name)
            self._objects.move_to_end(name)
        return _copy(content, buffers)

    def inspect(self, name: str, buffers: Sequence[memoryview], filled: Callable[[memoryview], object]) -> int:
        with self._lock:
            content = self._present(name)
        size = _copy(content, buffers)
        if size == sum(map(len, buffers)):
            for buffer in buffers:
                filled(buffer)
        return size

    def write(self, name: str, buffers: Sequence[memoryview]) -> None:
        content = b"".join(buffers)
        if self._capacity is not None and len(content) > self._capacity:
            raise FullError(f"an object of {len(content)} bytes is larger than the capacity of {self._capacity}")
        with self._lock:
            self._remove(name)
            self._evict_for(len(content))
            self._objects[name] = content
            self._bytes += len(content)

    def delete(self, names: Sequence[str]) -> None:
        with self._lock:
            for name in names:
                self._remove(name)

    def scan(self) -> Iterator[Stored]:
        with self._lock:
            found = [Stored(name, len(content)) for name, content in self._objects.items()]
        return iter(found)

    def used(self) -> Usage:
        with self._lock:
            return Usage(len(self._objects), self._bytes)

    def _present(self, name: str) -> bytes:
        """The object. Raises AbsentError. Under the lock."""
        if name not in self._objects:
            raise AbsentError(f"there is no object {name}")
        return self._objects[name]

    def _evict_for(self, size: int) -> None:
        """Makes room for `size` more bytes, which are no more than the capacity. Under the lock."""
        while self._capacity is not None and self._bytes + size > self._capacity:
            self._remove(next(iter(self._objects)))

    def _remove(self, name: str) -> None:
        """Under the lock."""
        self._bytes -= len(self._objects.pop(name, b""))


def _copy(content: bytes, buffers: Sequence[memoryview]) -> int:
    """Fills the buffers as far as it goes; returns the size of the content."""
    start = 0
    for buffer in buffers:
        part = memoryview(content)[start : start + len(buffer)]
        buffer[: len(part)] = part
        start += len(part)
    return len(content)
