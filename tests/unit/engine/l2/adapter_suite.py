"""What the tier may rely on with every L2 adapter. `AdapterSuite` is made for one adapter by a subclass:

    class TestMyAdapter(AdapterSuite):
        @pytest.fixture
        def adapter(self, memory: Memory) -> Iterator[L2Adapter]:
            adapter = Adapter(...)
            adapter.open([memory.whole])
            yield adapter
            adapter.close()

        @pytest.fixture
        def back_door(self, adapter: L2Adapter) -> BackDoor: ...

The storage that both reach is empty at the start of each test and has room for 32 MiB.
"""

from __future__ import annotations

import mmap
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random

import pytest

from engine.l2.base import AbsentError, L2Adapter, Stored, Usage

MIB = 1 << 20
PAGE = 4096
NAME = "kv-1_" + "0123456789abcdef" * 6
"""As long as the names of a real server."""
NAMES = ["a", "7", "-", "_", "--x", "_-0", "f" * 96, NAME, "z" * 128, "0" * 128]
SHAPES = {
    "nothing": [0],
    "no buffer": [],
    "a byte": [1],
    "a byte less than a page": [4095],
    "a page": [4096],
    "a byte more than a page": [4097],
    "a mebibyte and a bit": [MIB + 4097],
    "a header and pages": [PAGE, 2 * MIB],
    "a header and a part of a page": [PAGE, MIB + 77],
    "a header and a byte": [PAGE, 1],
    "odd buffers": [1, 4095, 4097, 3, 65537],
    "empty buffers between": [0, 5, 0, 0, PAGE, 0],
    "many buffers": [7] * 1500,
}
SIZES = [0, 1, 4095, 4096, 4097, MIB + 4097]


class BackDoor(ABC):
    """The storage, reached without the adapter."""

    @abstractmethod
    def put(self, name: str, content: bytes) -> None:
        """Makes or replaces an object, as another server would."""

    @abstractmethod
    def get(self, name: str) -> bytes | None:
        """The bytes of an object, or None if there is none."""

    @abstractmethod
    def names(self) -> set[str]:
        """The names of all objects."""


class Memory:
    """What an adapter is opened with: a region out of which buffers are cut."""

    def __init__(self, size: int = 32 * MIB) -> None:
        self._map = mmap.mmap(-1, size)
        self.whole = memoryview(self._map)
        self._end = 0

    def cut(self, *sizes: int, align: int = PAGE, shift: int = 0) -> list[memoryview]:
        """Buffers that nobody has yet, each `shift` bytes behind a multiple of `align`."""
        return [self._cut(size, align, shift) for size in sizes]

    def hold(self, content: bytes, *sizes: int, shift: int = 0) -> list[memoryview]:
        """Buffers with the content in them; one, if no sizes are given."""
        buffers = self.cut(*(sizes or [len(content)]), shift=shift)
        fill(buffers, content)
        return buffers

    def unmap(self) -> None:
        """Raises BufferError if anybody but this object keeps a part of it."""
        self.whole.release()
        self._map.close()

    def _cut(self, size: int, align: int, shift: int) -> memoryview:
        start = -(-self._end // align) * align + shift
        self._end = start + size
        assert self._end <= len(self.whole)
        return self.whole[start : self._end]


def fill(buffers: Sequence[memoryview], content: bytes) -> None:
    start = 0
    for buffer in buffers:
        buffer[:] = content[start : start + len(buffer)]
        start += len(buffer)
    assert start == len(content)


def noise(size: int, seed: int = 0) -> bytes:
    return Random(f"{size} {seed}").randbytes(size)


def bytes_of(buffers: Sequence[memoryview]) -> bytes:
    return b"".join(buffers)


class AdapterSuite:
    registers_memory = False
    """True if buffers have to lie in the memory that the adapter was opened with."""

    @pytest.fixture
    def memory(self) -> Iterator[Memory]:
        return Memory()

    @pytest.fixture
    def adapter(self, memory: Memory) -> Iterator[L2Adapter]:
        """Opened with the memory, on empty storage; closed at the end."""
        raise NotImplementedError

    @pytest.fixture
    def back_door(self, adapter: L2Adapter) -> BackDoor:
        raise NotImplementedError

    def occupied(self, size: int) -> int:
        """What an object of that size counts for in `used`."""
        return size

    # Writing and reading

    @pytest.mark.parametrize("shape", SHAPES)
    def test_what_was_written_is_read(self, adapter: L2Adapter, memory: Memory, shape: str) -> None:
        sizes = SHAPES[shape]
        content = noise(sum(sizes))
        written = memory.cut(*sizes)
        fill(written, content)
        adapter.write(NAME, written)
        read = memory.cut(*sizes)
        assert adapter.read_into(NAME, read) == len(content)
        assert bytes_of(read) == content

    @pytest.mark.parametrize("shape", SHAPES)
    def test_others_see_what_was_written(
        self, adapter: L2Adapter, back_door: BackDoor, memory: Memory, shape: str
    ) -> None:
        sizes = SHAPES[shape]
        content = noise(sum(sizes))
        buffers = memory.cut(*sizes)
        fill(buffers, content)
        adapter.write(NAME, buffers)
        assert back_door.get(NAME) == content

    @pytest.mark.parametrize("shape", SHAPES)
    def test_what_others_have_written_is_read(
        self, adapter: L2Adapter, back_door: BackDoor, memory: Memory, shape: str
    ) -> None:
        content = noise(sum(SHAPES[shape]))
        back_door.put(NAME, content)
        read = memory.cut(*SHAPES[shape])
        assert adapter.read_into(NAME, read) == len(content)
        assert bytes_of(read) == content

    @pytest.mark.parametrize("size", SIZES)
    def test_buffers_may_begin_anywhere(self, adapter: L2Adapter, memory: Memory, size: int) -> None:
        content = noise(PAGE + size)
        adapter.write(NAME, memory.hold(content, PAGE, size, shift=1))
        read = memory.cut(PAGE, size, shift=3)
        assert adapter.read_into(NAME, read) == len(content)
        assert bytes_of(read) == content

    def test_an_object_may_be_read_into_other_buffers_than_it_was_written_from(
        self, adapter: L2Adapter, memory: Memory
    ) -> None:
        content = noise(10_000)
        adapter.write(NAME, memory.hold(content, 9999, 1))
        read = memory.cut(1, 4999, 5000)
        assert adapter.read_into(NAME, read) == 10_000
        assert bytes_of(read) == content

    def test_what_was_written_stays_what_it_was_when_its_buffers_change(
        self, adapter: L2Adapter, back_door: BackDoor, memory: Memory
    ) -> None:
        content = noise(PAGE + MIB)
        buffers = memory.hold(content, PAGE, MIB)
        adapter.write(NAME, buffers)
        fill(buffers, bytes(PAGE + MIB))
        read = memory.cut(PAGE + MIB)
        adapter.read_into(NAME, read)
        assert bytes_of(read) == content == back_door.get(NAME)

    def test_what_was_read_is_the_readers(self, adapter: L2Adapter, memory: Memory) -> None:
        content = noise(PAGE + MIB)
        adapter.write(NAME, memory.hold(content))
        first, second = memory.cut(PAGE + MIB), memory.cut(PAGE + MIB)
        adapter.read_into(NAME, first)
        fill(first, bytes(PAGE + MIB))
        adapter.read_into(NAME, second)
        assert bytes_of(second) == content

    def test_writing_leaves_the_buffers_as_they_are(self, adapter: L2Adapter, memory: Memory) -> None:
        content = noise(PAGE + 5000)
        buffers = memory.hold(content, PAGE, 5000)
        adapter.write(NAME, buffers)
        assert bytes_of(buffers) == content

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("sizes", [[PAGE, 4096], [PAGE, MIB], [10], [PAGE, 1], [2 * MIB]], ids=str)
    def test_reading_returns_the_size_of_the_object_whatever_fits_into_the_buffers(
        self, adapter: L2Adapter, back_door: BackDoor, memory: Memory, sizes: list[int], size: int
    ) -> None:
        back_door.put(NAME, noise(size))
        assert adapter.read_into(NAME, memory.cut(*sizes)) == size

    @pytest.mark.parametrize("shape", SHAPES)
    def test_who_wants_to_see_what_is_read_is_told_of_all_of_it_in_order(
        self, adapter: L2Adapter, memory: Memory, shape: str
    ) -> None:
        sizes = SHAPES[shape]
        content = noise(sum(sizes))
        written = memory.cut(*sizes)
        fill(written, content)
        adapter.write(NAME, written)
        seen = bytearray()
        read = memory.cut(*sizes)
        assert adapter.read_pieces(NAME, read, seen.extend) == len(content)
        assert seen == content
        assert bytes_of(read) == content

    def test_who_inspects_it_sees_all_of_it_in_order(self, adapter: L2Adapter, memory: Memory) -> None:
        content, seen = noise(3 * PAGE + 5), bytearray()
        adapter.write(NAME, memory.hold(content))
        read = memory.cut(len(content))
        assert adapter.inspect(NAME, read, seen.extend) == len(content)
        assert bytes_of(read) == content == seen

    def test_who_inspects_what_has_another_size_is_told_its_size(self, adapter: L2Adapter, memory: Memory) -> None:
        adapter.write(NAME, memory.hold(noise(PAGE)))
        for size in (PAGE - 1, PAGE + 1):
            assert adapter.inspect(NAME, memory.cut(size), lambda piece: None) == PAGE
        with pytest.raises(AbsentError):
            adapter.inspect("absent", memory.cut(PAGE), lambda piece: None)

    def test_an_object_that_is_too_long_does_not_run_over_the_buffers(
        self, adapter: L2Adapter, back_door: BackDoor, memory: Memory
    ) -> None:
        back_door.put(NAME, noise(MIB))
        before, buffer, behind = memory.cut(PAGE, 2 * PAGE, MIB)
        assert adapter.read_into(NAME, [buffer]) == MIB
        assert bytes_of([before, behind]) == bytes(PAGE + MIB)

    def test_what_is_not_there_cannot_be_read(self, adapter: L2Adapter, memory: Memory) -> None:
        adapter.write("other", memory.hold(b"x"))
        with pytest.raises(AbsentError):
            adapter.read_into(NAME, memory.cut(10))

    @pytest.mark.parametrize("name", NAMES)
    def test_every_legal_name_is_one(self, adapter: L2Adapter, back_door: BackDoor, memory: Memory, name: str) -> None:
        others = [other for other in NAMES if other != name]
        adapter.write(name, memory.hold(name.encode()))
        read = memory.cut(len(name))
        assert adapter.read_into(name, read) == len(name)
        assert bytes_of(read) == name.encode() == back_door.get(name)
        assert adapter.contains([name, *others]) == [True] + [False] * len(others)
        assert list(adapter.scan()) == [Stored(name, len(name))]
        adapter.delete([name])
        assert back_door.names() == set()

    # Replacing

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("size_before", SIZES)
    def test_what_is_written_again_is_replaced(
        self, adapter: L2Adapter, back_door: BackDoor, memory: Memory, size_before: int, size: int
    ) -> None:
        adapter.write(NAME, memory.hold(noise(size_before, 1)))
        adapter.write(NAME, memory.hold(noise(size, 2)))
        read = memory.cut(size)
        assert adapter.read_into(NAME, read) == size
        assert bytes_of(read) == noise(size, 2) == back_door.get(NAME)
        assert list(adapter.scan()) == [Stored(NAME, size)]

    def test_what_others_replace_is_read_as_it_became(
        self, adapter: L2Adapter, back_door: BackDoor, memory: Memory
    ) -> None:
        adapter.write(NAME, memory.hold(noise(5000, 1)))
        back_door.put(NAME, noise(9000, 2))
        read = memory.cut(9000)
        assert adapter.read_into(NAME, read) == 9000
        assert bytes_of(read) == noise(9000, 2)

    # What is there

    def test_contains_answers_in_the_order_of_the_names(
        self, adapter: L2Adapter, back_door: BackDoor, memory: Memory
    ) -> None:
        adapter.write("mine", memory.hold(b"1"))
        back_door.put("theirs", b"2")
        assert adapter.contains(["none", "mine", "theirs", "nil", "mine"]) == [False, True, True, False, True]

    def test_an_empty_object_is_contained(self, adapter: L2Adapter) -> None:
        adapter.write("empty", [])
        assert adapter.contains(["empty", "none"]) == [True, False]

    def test_contains_of_the_same_name_many_times(self, adapter: L2Adapter, memory: Memory) -> None:
        adapter.write("here", memory.hold(b"1"))
        assert adapter.contains(["here", "here", "gone", "gone", "here"]) == [True, True, False, False, True]

    def test_contains_of_no_name(self, adapter: L2Adapter) -> None:
        assert adapter.contains([]) == []

    def test_contains_of_a_whole_prompt(self, adapter: L2Adapter, memory: Memory) -> None:
        names = [f"{NAME[:-4]}{number:04x}" for number in range(512)]
        buffers = memory.hold(b"content")
        for name in names[::3]:
            adapter.write(name, buffers)
        assert adapter.contains(names) == [number % 3 == 0 for number in range(512)]

    def test_a_scan_finds_all_with_their_sizes(self, adapter: L2Adapter, back_door: BackDoor, memory: Memory) -> None:
        sizes = {f"{NAME[:-4]}{number:04x}": size for number, size in enumerate(SIZES)}
        for name, size in sizes.items():
            adapter.write(name, memory.hold(noise(size)))
        back_door.put("theirs", noise(77))
        assert sorted(adapter.scan()) == sorted(sizes.items() | {("theirs", 77)})

    def test_a_scan_finds_hundreds(self, adapter: L2Adapter, back_door: BackDoor, memory: Memory) -> None:
        names = {f"{number:096x}" for number in range(700)}
        buffers = memory.hold(b"content")
        for name in names:
            adapter.write(name, buffers)
        assert sorted(stored.name for stored in adapter.scan()) == sorted(names)
        assert back_door.names() == names

    def test_a_scan_of_nothing(self, adapter: L2Adapter) -> None:
        assert list(adapter.scan()) == []

    def test_a_scan_that_is_let_go_hinders_nothing(self, adapter: L2Adapter, memory: Memory) -> None:
        for name in ("a", "b", "c"):
            adapter.write(name, memory.hold(b"1"))
        scan = adapter.scan()
        next(scan)
        adapter.delete(["a", "b", "c"])
        assert adapter.contains(["a", "b", "c"]) == [False] * 3
        del scan

    def test_what_was_removed_during_a_scan_may_be_missed_but_is_no_error(
        self, adapter: L2Adapter, memory: Memory
    ) -> None:
        buffers = memory.hold(b"content")
        for number in range(20):
            adapter.write(f"{number:04x}", buffers)
        scan = adapter.scan()
        found = [next(scan)]
        adapter.delete([f"{number:04x}" for number in range(20)])
        found += scan
        assert {stored.size for stored in found} == {7}

    def test_used_is_what_is_stored_or_not_known(self, adapter: L2Adapter, memory: Memory) -> None:
        def used() -> Usage | None:
            return adapter.used()

        if used() is None:
            return
        assert used() == Usage(0, 0)
        adapter.write("a", memory.hold(noise(5000)))
        adapter.write("b", memory.hold(noise(MIB)))
        assert used() == Usage(2, self.occupied(5000) + self.occupied(MIB))
        adapter.write("a", memory.hold(noise(9000)))
        assert used() == Usage(2, self.occupied(9000) + self.occupied(MIB))
        adapter.delete(["b", "b", "none"])
        assert used() == Usage(1, self.occupied(9000))

    # Deleting

    def test_what_was_deleted_is_gone(self, adapter: L2Adapter, back_door: BackDoor, memory: Memory) -> None:
        for name in ("a", "b", "c"):
            adapter.write(name, memory.hold(name.encode()))
        adapter.delete(["c", "a"])
        assert adapter.contains(["a", "b", "c"]) == [False, True, False]
        assert back_door.names() == {"b"}
        with pytest.raises(AbsentError):
            adapter.read_into("a", memory.cut(1))

    def test_what_others_have_written_is_deleted(self, adapter: L2Adapter, back_door: BackDoor) -> None:
        back_door.put(NAME, b"theirs")
        adapter.delete([NAME])
        assert back_door.get(NAME) is None

    def test_deleting_what_is_not_there_is_no_error(
        self, adapter: L2Adapter, back_door: BackDoor, memory: Memory
    ) -> None:
        adapter.write("a", memory.hold(b"1"))
        adapter.delete(["none", "a", "nil", "a"])
        assert back_door.names() == set()

    def test_deleting_nothing(self, adapter: L2Adapter, back_door: BackDoor, memory: Memory) -> None:
        adapter.write("a", memory.hold(b"1"))
        adapter.delete([])
        assert back_door.names() == {"a"}

    def test_deleting_many(self, adapter: L2Adapter, back_door: BackDoor, memory: Memory) -> None:
        names = [f"{number:096x}" for number in range(1200)]
        buffers = memory.hold(b"content")
        for name in names[::4]:
            adapter.write(name, buffers)
        adapter.write("kept", buffers)
        adapter.delete(names)
        assert back_door.names() == {"kept"}

    def test_what_was_deleted_can_be_written_again(self, adapter: L2Adapter, memory: Memory) -> None:
        adapter.write(NAME, memory.hold(b"first"))
        adapter.delete([NAME])
        adapter.write(NAME, memory.hold(b"second"))
        read = memory.cut(6)
        assert adapter.read_into(NAME, read) == 6
        assert bytes_of(read) == b"second"

    # Several threads

    def test_readers_see_whole_objects_only_while_they_are_replaced(self, adapter: L2Adapter, memory: Memory) -> None:
        contents = {noise(PAGE + 128 * 1024, seed) for seed in range(2)}
        adapter.write(NAME, memory.hold(next(iter(contents)), PAGE, 128 * 1024))
        written = [memory.hold(content, PAGE, 128 * 1024) for content in contents]
        read = [memory.cut(PAGE, 128 * 1024) for _ in range(2)]

        def write(buffers: Sequence[memoryview]) -> None:
            for _ in range(25):
                adapter.write(NAME, buffers)

        def look(buffers: Sequence[memoryview], ended: Callable[[], bool]) -> set[bytes]:
            seen = set()
            while True:
                over = ended()
                assert adapter.read_into(NAME, buffers) == PAGE + 128 * 1024
                seen.add(bytes_of(buffers))
                if over:
                    return seen

        with ThreadPoolExecutor(4) as threads:
            writers = [threads.submit(write, buffers) for buffers in written]
            readers = [
                threads.submit(look, buffers, lambda: all(writer.done() for writer in writers)) for buffers in read
            ]
            seen = set[bytes]().union(*(reader.result() for reader in readers))
            for writer in writers:
                writer.result()
        assert seen <= contents

    def test_threads_that_write_delete_and_read_do_not_disturb_each_other(
        self, adapter: L2Adapter, back_door: BackDoor, memory: Memory
    ) -> None:
        def work(seed: int, buffers: Sequence[memoryview], spare: Sequence[memoryview]) -> None:
            for number in range(20):
                name = f"{seed}-{number}"
                adapter.write(name, buffers)
                assert adapter.contains([name, f"{seed}-none"]) == [True, False]
                assert adapter.read_into(name, spare) == PAGE + 5000
                assert bytes_of(spare) == bytes_of(buffers)
                if number % 2:
                    adapter.delete([name])

        mine = [memory.hold(noise(PAGE + 5000, seed), PAGE, 5000) for seed in range(4)]
        spare = [memory.cut(PAGE, 5000) for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4), mine, spare))
        assert back_door.names() == {f"{seed}-{number}" for seed in range(4) for number in range(0, 20, 2)}
        assert all(back_door.get(f"{seed}-0") == noise(PAGE + 5000, seed) for seed in range(4))

    def test_readers_of_what_is_deleted_see_it_whole_or_not_at_all(self, adapter: L2Adapter, memory: Memory) -> None:
        content = noise(PAGE + 64 * 1024)
        written, read = memory.hold(content), memory.cut(len(content))

        def come_and_go() -> None:
            for _ in range(25):
                adapter.write(NAME, written)
                adapter.delete([NAME])

        def look() -> None:
            try:
                assert adapter.read_into(NAME, read) == len(content)
                assert bytes_of(read) == content
            except AbsentError:
                pass

        with ThreadPoolExecutor(1) as threads:
            writer = threads.submit(come_and_go)
            while not writer.done():
                look()
            writer.result()

    # Opening and closing

    def test_it_may_be_closed_and_opened_again(self, adapter: L2Adapter, memory: Memory) -> None:
        for round_ in range(2):
            adapter.close()
            adapter.open([memory.whole])
            adapter.write(NAME, memory.hold(noise(5000, round_)))
            read = memory.cut(5000)
            assert adapter.read_into(NAME, read) == 5000
            assert bytes_of(read) == noise(5000, round_)

    def test_it_may_be_closed_twice(self, adapter: L2Adapter) -> None:
        adapter.close()
        adapter.close()

    # Buffers

    def test_no_buffer_is_kept(self, adapter: L2Adapter, memory: Memory) -> None:
        written, read = memory.hold(noise(5000), 4096, 904), memory.cut(4096, 904)
        adapter.write(NAME, written)
        adapter.read_into(NAME, read)
        kept = [weakref.ref(buffer) for buffer in (*written, *read)]
        written.clear()
        read.clear()
        assert [buffer() for buffer in kept] == [None] * 4

    def test_buffers_outside_of_the_memory_may_be_resized_afterwards(self, adapter: L2Adapter) -> None:
        if self.registers_memory:
            pytest.skip("all buffers lie in the memory that it was opened with")
        content = bytearray(noise(5000))
        adapter.write(NAME, [memoryview(content)])
        content.extend(bytes(MIB))
        read = bytearray(5000)
        adapter.read_into(NAME, [memoryview(read)])
        assert read == noise(5000)
        read.extend(bytes(MIB))

    def test_a_failed_read_keeps_no_buffer_either(self, adapter: L2Adapter) -> None:
        if self.registers_memory:
            pytest.skip("all buffers lie in the memory that it was opened with")
        buffer = bytearray(5000)
        with suppress(AbsentError):
            adapter.read_into(NAME, [memoryview(buffer)])
        buffer.extend(bytes(MIB))

    def test_closing_lets_go_of_the_memory(self, adapter: L2Adapter, memory: Memory) -> None:
        adapter.write(NAME, memory.hold(noise(5000)))
        adapter.read_into(NAME, memory.cut(5000))
        adapter.close()
        memory.unmap()
