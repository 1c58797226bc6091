"""The adapter of memory: the suite, and its capacity."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.l2.base import AbsentError, FullError, Usage
from engine.l2.memory_l2 import Adapter
from tests.unit.engine.l2.adapter_suite import AdapterSuite, BackDoor, Memory


class MemoryDoor(BackDoor):
    """The dictionary behind the adapter."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def put(self, name: str, content: bytes) -> None:
        self._adapter._remove(name)
        self._adapter._objects[name] = content
        self._adapter._bytes += len(content)

    def get(self, name: str) -> bytes | None:
        return self._adapter._objects.get(name)

    def names(self) -> set[str]:
        return set(self._adapter._objects)


class TestMemoryAdapter(AdapterSuite):
    @pytest.fixture
    def adapter(self, memory: Memory) -> Iterator[Adapter]:
        adapter = Adapter()
        adapter.open([memory.whole])
        yield adapter
        adapter.close()

    @pytest.fixture
    def back_door(self, adapter: Adapter) -> BackDoor:
        return MemoryDoor(adapter)


def bytes_at(content: bytes) -> list[memoryview]:
    return [memoryview(content)]


@pytest.fixture
def small() -> Adapter:
    """Of ten bytes."""
    return Adapter(capacity=10)


def test_the_least_recently_used_go_when_the_capacity_is_full(small: Adapter) -> None:
    for name in "abc":
        small.write(name, bytes_at(b"123"))
    small.read_into("a", [memoryview(bytearray(3))])
    small.write("d", bytes_at(b"12345"))
    assert small.contains([*"abcd"]) == [True, False, False, True]
    assert small.used() == Usage(2, 8)


def test_what_is_larger_than_the_capacity_is_refused_and_evicts_nothing(small: Adapter) -> None:
    small.write("a", bytes_at(b"123"))
    with pytest.raises(FullError, match="11 bytes is larger than the capacity of 10"):
        small.write("a", bytes_at(b"12345678901"))
    assert small.used() == Usage(1, 3)


def test_an_object_as_large_as_the_capacity_fits(small: Adapter) -> None:
    small.write("a", bytes_at(b"123"))
    small.write("b", bytes_at(b"1234567890"))
    assert small.used() == Usage(1, 10)


def test_a_replaced_object_does_not_count_twice(small: Adapter) -> None:
    small.write("a", bytes_at(b"1234"))
    small.write("b", bytes_at(b"1234"))
    small.write("b", bytes_at(b"123456"))
    assert small.used() == Usage(2, 10)


def test_asking_whether_it_is_there_is_no_use(small: Adapter) -> None:
    small.write("a", bytes_at(b"12345"))
    small.write("b", bytes_at(b"12345"))
    small.contains(["a"])
    small.write("c", bytes_at(b"1"))
    assert small.contains([*"abc"]) == [False, True, True]


def test_what_is_stored_outlives_a_close(small: Adapter) -> None:
    small.open([])
    small.write("a", bytes_at(b"1"))
    small.close()
    small.open([])
    assert small.contains(["a"]) == [True]


def test_what_was_deleted_cannot_be_read(small: Adapter) -> None:
    small.write("a", bytes_at(b"1"))
    small.delete(["a"])
    with pytest.raises(AbsentError, match="no object a"):
        small.read_into("a", [])
