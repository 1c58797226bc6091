"""The adapter of Mooncake Store against a real master and a real client that lends memory."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.l2.base import AbsentError, DeniedError, FullError, L2Adapter, L2Error, Stored, UnavailableError
from tests.support.mooncake import Lender, Master, program
from tests.support.polling import until
from tests.unit.engine.l2.adapter_suite import (
    MIB,
    NAME,
    PAGE,
    SHAPES,
    SIZES,
    AdapterSuite,
    BackDoor,
    Memory,
    bytes_of,
    noise,
)

program()
from engine.l2.mooncake_l2 import Adapter  # noqa: E402

LIMIT = 3.0
"""Seconds that a call may take where somebody does not answer: the least that the library allows."""
GRACE = 1.0
"""Seconds that this machine may take for the rest."""
LENT = 256 * MIB
CALLS: dict[str, Callable[[Adapter, Memory], object]] = {
    "contains": lambda adapter, memory: adapter.contains(["name"]),
    "read_into": lambda adapter, memory: adapter.read_into("name", memory.cut(PAGE)),
    "write": lambda adapter, memory: adapter.write("other", memory.cut(PAGE, MIB)),
    "write again": lambda adapter, memory: adapter.write("name", memory.cut(PAGE)),
    "delete": lambda adapter, memory: adapter.delete(["name"]),
    "scan": lambda adapter, memory: list(adapter.scan()),
}
_MOVES = ("read_into", "write", "write again")


class Cluster:
    """A master and one client that lends memory."""

    def __init__(self, folder: Path) -> None:
        self.master = Master(folder)
        self.lender = Lender(folder, self.master, LENT)

    def adapter(self, prefix: str, **changes: Any) -> Adapter:
        where = {"master": self.master.address, "metadata_server": self.master.metadata, "admin": self.master.admin}
        return Adapter(**where | {"prefix": prefix, "timeout": LIMIT} | changes)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("mooncake"))
    with cluster.master, cluster.lender:
        yield cluster


class Part(Memory):
    """The memory of one test, in the region that the adapter of all of them was opened with.

    To open a client takes the library a twentieth of a second, and to close it a second.
    """

    def __init__(self, region: mmap.mmap) -> None:
        self.whole = memoryview(region)
        self._end = 0

    def unmap(self) -> None:
        self.whole.release()


@pytest.fixture(scope="module")
def region() -> mmap.mmap:
    return mmap.mmap(-1, 32 * MIB)


@pytest.fixture
def memory(region: mmap.mmap) -> Memory:
    region[:] = bytes(len(region))
    return Part(region)


@pytest.fixture(scope="module")
def patient(cluster: Cluster, region: mmap.mmap) -> Iterator[Adapter]:
    """For tests that have nothing to wait for."""
    adapter = cluster.adapter("patient/", timeout=20.0)
    yield adapter
    adapter.close()


@pytest.fixture(scope="module")
def impatient(cluster: Cluster, region: mmap.mmap) -> Iterator[Adapter]:
    # The last that was opened sets the limits for moving bytes; the suite before these tests has no need of them.
    adapter = cluster.adapter("impatient/")
    yield adapter
    adapter.close()


@pytest.fixture
def prefix(cluster: Cluster) -> str:
    """Of the objects of the tests that break something; there are none yet."""
    return "impatient/"


@pytest.fixture
def adapter(cluster: Cluster, impatient: Adapter, memory: Memory, prefix: str) -> Adapter:
    return ready(cluster, impatient, memory, prefix)


def ready(cluster: Cluster, adapter: Adapter, memory: Memory, prefix: str) -> Adapter:
    """The adapter, open, without objects."""
    if adapter._opened is None:
        adapter.open([memory.whole])
    cluster.lender.remove(prefix)
    return adapter


class OtherClient(BackDoor):
    """The client that lends the memory puts and gets by itself."""

    def __init__(self, cluster: Cluster, prefix: str) -> None:
        self._cluster = cluster
        self._prefix = prefix

    def put(self, name: str, content: bytes) -> None:
        self._cluster.lender.put(self._prefix + name, content)

    def get(self, name: str) -> bytes | None:
        return self._cluster.lender.get(self._prefix + name)

    def names(self) -> set[str]:
        keys = self._cluster.master.keys()
        return {key.removeprefix(self._prefix) for key in keys if key.startswith(self._prefix)}


@pytest.fixture
def back_door(cluster: Cluster, prefix: str) -> BackDoor:
    return OtherClient(cluster, prefix)


class TestMooncake(AdapterSuite):
    """The library keeps no empty objects."""

    registers_memory = True

    @pytest.fixture
    def memory(self, region: mmap.mmap) -> Memory:
        region[:] = bytes(len(region))
        return Part(region)

    @pytest.fixture
    def prefix(self) -> str:
        return "patient/"

    @pytest.fixture
    def adapter(self, cluster: Cluster, patient: Adapter, memory: Memory, prefix: str) -> Adapter:
        return ready(cluster, patient, memory, prefix)

    @pytest.fixture
    def back_door(self, cluster: Cluster, prefix: str) -> BackDoor:
        return OtherClient(cluster, prefix)

    @pytest.fixture(autouse=True)
    def none_of_the_empty(self, request: pytest.FixtureRequest) -> None:
        case = getattr(request.node, "callspec", None)
        values = case.params if case is not None else {}
        sizes = [values.get("size"), values.get("size_before"), sum(SHAPES.get(values.get("shape"), [1]))]
        if 0 in sizes and "anywhere" not in request.node.name:
            pytest.skip("Mooncake Store keeps no empty objects")

    def test_an_empty_object_is_contained(self, adapter: L2Adapter) -> None:
        """It is refused instead."""
        with pytest.raises(DeniedError, match="empty"):
            adapter.write("empty", [])
        assert adapter.contains(["empty", "none"]) == [False, False]

    def test_a_scan_finds_all_with_their_sizes(self, adapter: L2Adapter, back_door: BackDoor, memory: Memory) -> None:
        """All that are not empty."""
        sizes = {f"name-{size}": size for size in SIZES if size}
        for name, size in sizes.items():
            adapter.write(name, memory.hold(noise(size)))
        back_door.put("theirs", noise(77))
        assert sorted(adapter.scan()) == sorted(sizes.items() | {("theirs", 77)})

    def test_readers_see_whole_objects_only_while_they_are_replaced(self, adapter: L2Adapter, memory: Memory) -> None:
        """Or none, since what is being replaced cannot be read; but who has begun to read it before may get parts of
        both, which the envelope tells: the library writes over the same memory."""
        size = PAGE + 128 * 1024
        contents = [noise(size, seed) for seed in range(2)]
        written = [memory.hold(content, PAGE, size - PAGE) for content in contents]
        read = memory.cut(PAGE, size - PAGE)
        adapter.write(NAME, written[0])

        def write(buffers: Sequence[memoryview]) -> None:
            for _ in range(25):
                adapter.write(NAME, buffers)

        first, second = (np.frombuffer(content, np.uint8) for content in contents)
        with ThreadPoolExecutor(2) as threads:
            writers = [threads.submit(write, buffers) for buffers in written]
            while not all(writer.done() for writer in writers):
                with suppress(AbsentError):
                    assert adapter.read_into(NAME, read) == size
                    seen = np.frombuffer(bytes_of(read), np.uint8)
                    assert ((seen == first) | (seen == second)).all()
            for writer in writers:
                writer.result()
        adapter.read_into(NAME, read)
        assert bytes_of(read) in contents


# What it is told


def test_what_others_have_in_the_cluster_is_not_touched(
    adapter: Adapter, cluster: Cluster, prefix: str, memory: Memory
) -> None:
    for key in (f"{prefix}mine", f"{prefix}Not a name", f"{prefix}below/mine", f"other{prefix}mine", "mine"):
        cluster.lender.put(key.replace(" ", "."), b"x")
    assert list(adapter.scan()) == [Stored("mine", 1)]


def test_without_the_address_of_the_masters_admin_server_a_scan_says_what_it_wants(
    cluster: Cluster, prefix: str, memory: Memory
) -> None:
    adapter = cluster.adapter(prefix, admin="127.0.0.1:1")
    adapter.open([memory.whole])
    adapter.write("name", memory.cut(PAGE))
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1; see admin"):
        next(adapter.scan())
    adapter.close()


def test_it_lends_memory_to_the_others(tmp_path: Path, prefix: str, memory: Memory) -> None:
    """To a second adapter, while nobody else lends any."""
    with Master(tmp_path) as master:
        where = {"master": master.address, "metadata_server": master.metadata, "timeout": LIMIT}
        lender, other = Adapter(**where, segment=64 * MIB), Adapter(**where)
        buffers = memory.hold(noise(PAGE + MIB), PAGE, MIB)
        other.open([memory.whole])
        with pytest.raises(FullError):
            other.write("name", buffers)
        lender.open([memory.whole])
        other.write("name", buffers)
        assert lender.read_into("name", memory.cut(PAGE, MIB)) == PAGE + MIB
        lender.close()
        other.close()


# What may be wrong with the cluster


@pytest.mark.parametrize("call", CALLS)
def test_before_it_is_open_nothing_is_there(cluster: Cluster, prefix: str, memory: Memory, call: str) -> None:
    with pytest.raises(UnavailableError, match=r"not open|see admin"):
        CALLS[call](cluster.adapter(prefix, admin="127.0.0.1:1"), memory)


@pytest.mark.parametrize("call", CALLS)
def test_after_it_was_closed_nothing_is_there(adapter: Adapter, memory: Memory, call: str) -> None:
    adapter.write("name", memory.cut(PAGE))
    adapter.close()
    with pytest.raises(UnavailableError, match="not open"):
        CALLS[call](adapter, memory)


def test_garbage_is_returned_as_it_is(adapter: Adapter, back_door: BackDoor, memory: Memory) -> None:
    back_door.put("name", noise(5000))
    [buffer] = memory.cut(5000)
    assert adapter.read_into("name", [buffer]) == 5000
    assert bytes(buffer) == noise(5000)


def test_more_than_the_cluster_has_room_for_is_full_and_leaves_what_there_was(
    adapter: Adapter, cluster: Cluster, prefix: str, memory: Memory
) -> None:
    buffers = memory.cut(24 * MIB)

    def fill_up() -> None:
        for number in range(LENT // (24 * MIB) + 1):
            adapter.write(f"{number}", buffers)
            # What was asked for lately is not evicted.
            adapter.contains([f"{each}" for each in range(number + 1)])

    with pytest.raises(FullError):
        fill_up()
    last = len(list(adapter.scan()))
    assert adapter.contains(["0", f"{last - 1}", f"{last}"]) == [True, True, False]
    cluster.lender.remove(prefix)


def test_what_another_client_was_writing_when_it_was_killed_can_be_written(
    adapter: Adapter, cluster: Cluster, prefix: str, memory: Memory
) -> None:
    half = cluster.adapter(prefix)
    half.open([memory.whole])
    store = half._client()
    assert store.batch_put_session_start([f"{prefix}name"], [PAGE]) == [0]
    assert adapter.contains(["name"]) == [False]
    with pytest.raises(AbsentError):
        adapter.read_into("name", memory.cut(PAGE))
    adapter.write("name", memory.hold(noise(PAGE)))
    [buffer] = memory.cut(PAGE)
    assert adapter.read_into("name", [buffer]) == PAGE
    assert bytes(buffer) == noise(PAGE)
    half.close()


def test_the_library_is_silent(adapter: Adapter, memory: Memory, capfd: pytest.CaptureFixture[str]) -> None:
    adapter.close()
    adapter.open([memory.whole])
    with pytest.raises(AbsentError):
        adapter.read_into("name", memory.cut(PAGE))
    adapter.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("call", CALLS)
def test_a_master_that_does_not_answer_is_unavailable_in_time(
    adapter: Adapter, cluster: Cluster, memory: Memory, call: str
) -> None:
    adapter.write("name", memory.cut(PAGE))
    cluster.master.pause()
    try:
        assert_unavailable_in_time(lambda: CALLS[call](adapter, memory))
    finally:
        cluster.master.resume()
    until(lambda: succeeds(lambda: adapter.contains(["name"])), "the adapter is answered again")


def test_a_master_that_does_not_answer_cannot_be_joined(cluster: Cluster, prefix: str, memory: Memory) -> None:
    adapter = cluster.adapter(prefix)
    cluster.master.pause()
    try:
        assert_unavailable_in_time(lambda: adapter.open([memory.whole]))
    finally:
        cluster.master.resume()
    adapter.open([memory.whole])
    adapter.write("name", memory.cut(PAGE))
    adapter.close()


@pytest.mark.parametrize("wrong", ["master", "metadata_server"])
def test_a_wrong_address_cannot_be_joined_and_the_next_try_can(
    cluster: Cluster, prefix: str, memory: Memory, wrong: str
) -> None:
    elsewhere = {"master": cluster.master.admin, "metadata_server": f"http://{cluster.master.admin}/metadata"}
    assert_unavailable_in_time(lambda: cluster.adapter(prefix, **{wrong: elsewhere[wrong]}).open([memory.whole]))
    adapter = cluster.adapter(prefix)
    adapter.open([memory.whole])
    adapter.write("name", memory.cut(PAGE))
    adapter.close()


@pytest.mark.parametrize("call", _MOVES)
def test_a_lender_that_does_not_answer_is_unavailable_in_time(
    adapter: Adapter, cluster: Cluster, memory: Memory, call: str
) -> None:
    adapter.write("name", memory.cut(PAGE))
    cluster.lender.pause()
    try:
        assert_unavailable_in_time(lambda: CALLS[call](adapter, memory))
    finally:
        cluster.lender.resume()
    until(lambda: succeeds(lambda: CALLS[call](adapter, memory)), "the bytes move again")


def test_a_lender_that_stops_in_the_middle_of_an_object_does_not_write_into_the_buffers_later(
    adapter: Adapter, cluster: Cluster, memory: Memory
) -> None:
    adapter.write("name", memory.hold(noise(24 * MIB)))
    memory = Memory(64 * MIB)
    adapter.close()
    adapter.open([memory.whole])
    [buffer] = memory.cut(24 * MIB)
    errors: list[L2Error] = []
    reader = threading.Thread(target=lambda: errors.extend(error_of(lambda: adapter.read_into("name", [buffer]))))
    reader.start()
    until(lambda: any(buffer[::MIB]), "the first bytes come")
    cluster.lender.pause()
    reader.join()
    as_left = bytes(buffer)
    cluster.lender.resume()
    assert [type(error) for error in errors] == [UnavailableError]
    [other] = memory.cut(24 * MIB)
    until(lambda: succeeds(lambda: adapter.read_into("name", [other])), "the bytes move again")
    assert bytes(other) == noise(24 * MIB)
    assert bytes(buffer) == as_left != bytes(other)


def test_a_killed_master_is_unavailable_until_it_is_back_empty(
    adapter: Adapter, cluster: Cluster, memory: Memory
) -> None:
    buffers = memory.hold(noise(PAGE))
    adapter.write("name", buffers)
    cluster.master.kill()
    try:
        for call in CALLS.values():
            assert_unavailable_in_time(lambda call=call: call(adapter, memory))
    finally:
        cluster.master.start()
    until(lambda: succeeds(lambda: adapter.write("name", buffers)), "the lender has joined the new master")
    [buffer] = memory.cut(PAGE)
    assert adapter.read_into("name", [buffer]) == PAGE
    assert bytes(buffer) == noise(PAGE)


def test_a_killed_lender_takes_its_objects_along_until_there_is_another(
    adapter: Adapter, cluster: Cluster, memory: Memory
) -> None:
    buffers = memory.hold(noise(PAGE))
    adapter.write("name", buffers)
    cluster.lender.kill()
    try:
        for call in _MOVES:
            assert_unavailable_in_time(lambda call=call: CALLS[call](adapter, memory))
    finally:
        cluster.lender.start()
    until(lambda: succeeds(lambda: adapter.write("name", buffers)), "the new lender is found", timeout=60)
    [buffer] = memory.cut(PAGE)
    assert adapter.read_into("name", [buffer]) == PAGE
    assert bytes(buffer) == noise(PAGE)


def assert_unavailable_in_time(call: Callable[[], object]) -> None:
    begin = time.monotonic()
    with pytest.raises(UnavailableError):
        call()
    assert time.monotonic() - begin < LIMIT + GRACE


def succeeds(call: Callable[[], object]) -> bool:
    return not error_of(call)


def error_of(call: Callable[[], object]) -> list[L2Error]:
    try:
        call()
    except L2Error as error:
        return [error]
    return []
