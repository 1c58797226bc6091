"""The wrappers that make adapters slow or faulty: without a fault they are the adapter; with one it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from engine.l2 import memory_l2
from engine.l2.base import L2Adapter, UnavailableError
from engine.l2.faults import Fault, FaultyAdapter, Flipped, LatencyAdapter, Raised, Truncated
from tests.unit.engine.l2.adapter_suite import AdapterSuite, BackDoor, Memory
from tests.unit.engine.l2.test_memory_l2 import MemoryDoor

CALLS: dict[str, Callable[[L2Adapter], object]] = {
    "open": lambda adapter: adapter.open([]),
    "contains": lambda adapter: adapter.contains(["a"]),
    "read_into": lambda adapter: adapter.read_into("a", [memoryview(bytearray(10))]),
    "write": lambda adapter: adapter.write("a", [memoryview(b"0123456789")]),
    "delete": lambda adapter: adapter.delete(["a"]),
    "scan": lambda adapter: adapter.scan(),
    "used": lambda adapter: adapter.used(),
}


class WrapperSuite(AdapterSuite):
    @pytest.fixture
    def inner(self) -> memory_l2.Adapter:
        return memory_l2.Adapter()

    @pytest.fixture
    def back_door(self, inner: memory_l2.Adapter) -> BackDoor:
        return MemoryDoor(inner)


class TestLatencyAdapter(WrapperSuite):
    @pytest.fixture
    def adapter(self, inner: memory_l2.Adapter, memory: Memory) -> Iterator[L2Adapter]:
        adapter = LatencyAdapter(inner, 0)
        adapter.open([memory.whole])
        yield adapter
        adapter.close()


class TestFaultyAdapter(WrapperSuite):
    @pytest.fixture
    def adapter(self, inner: memory_l2.Adapter, memory: Memory) -> Iterator[L2Adapter]:
        adapter = FaultyAdapter(inner, lambda call, names: None)
        adapter.open([memory.whole])
        yield adapter
        adapter.close()


@pytest.fixture
def inner() -> memory_l2.Adapter:
    adapter = memory_l2.Adapter()
    adapter.write("a", [memoryview(b"0123456789")])
    return adapter


@pytest.mark.parametrize("call", CALLS)
def test_a_slow_call_waits_until_it_is_told_to_hurry(inner: memory_l2.Adapter, call: str) -> None:
    adapter = LatencyAdapter(inner, 60)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(CALLS[call], adapter)
        assert not wait([running], 0.02).done
        adapter.hurry()
        running.result(20)


def planned(call: str, fault: Fault) -> Callable[[str, Sequence[str]], Fault | None]:
    return lambda called, names: fault if called == call else None


@pytest.mark.parametrize("call", CALLS)
def test_a_call_raises_what_was_planned_and_the_others_go_on(inner: memory_l2.Adapter, call: str) -> None:
    adapter = FaultyAdapter(inner, planned(call, Raised(UnavailableError("the cable is cut"))))
    for _ in range(2):
        with pytest.raises(UnavailableError, match="the cable is cut"):
            CALLS[call](adapter)
    for other in CALLS.keys() - {call, "delete"}:
        CALLS[other](adapter)
    assert inner.contains(["a"]) == [True]


def test_a_plan_knows_the_names(inner: memory_l2.Adapter) -> None:
    adapter = FaultyAdapter(inner, lambda call, names: Truncated(1) if "b" in names else None)
    for name in "ab":
        adapter.write(name, [memoryview(b"xyz")])
    assert [stored.size for stored in inner.scan()] == [3, 1]


@pytest.mark.parametrize(
    ("fault", "content"),
    [(Flipped(0, 3), b"8123456789"), (Flipped(-1), b"0123456788"), (Truncated(4), b"0123"), (Truncated(0), b"")],
)
def test_what_is_written_and_what_is_read_is_damaged(inner: memory_l2.Adapter, fault: Fault, content: bytes) -> None:
    writing = FaultyAdapter(inner, planned("write", fault))
    writing.write("b", [memoryview(b"01234"), memoryview(b"56789")])
    reading = FaultyAdapter(inner, planned("read_into", fault))
    whole, front, back = bytearray(10), bytearray(3), bytearray(7)
    assert inner.read_into("b", [memoryview(whole)]) == len(content)
    assert reading.read_into("a", [memoryview(front), memoryview(back)]) == len(content)
    assert whole[: len(content)] == (front + back)[: len(content)] == content


def test_an_empty_object_has_nothing_to_flip(inner: memory_l2.Adapter) -> None:
    FaultyAdapter(inner, planned("write", Flipped(5))).write("a", [])
    assert [stored.size for stored in inner.scan()] == [0]
