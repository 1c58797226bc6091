"""The arena is one segment of shared memory, there from construction to `close`."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from mmap import PROT_READ, mmap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine import NoMemoryError, StartError
from engine.l1 import arena as arena_module
from engine.l1 import huge_pages, pages
from engine.l1.arena import PREFIX, Arena, remove_leftovers
from engine.l1.preflight import Room
from tests.support.server import ROOT
from tests.unit.engine.support import SHM

MIB = 1 << 20
NAME = f"kvkeep_test_arena_{os.getpid()}"
PATH = SHM / NAME


@pytest.fixture(autouse=True)
def _removed() -> Iterator[None]:
    yield
    PATH.unlink(missing_ok=True)


def test_the_segment_has_the_size_and_is_zeroed_and_private() -> None:
    arena = Arena(NAME, MIB)
    status = PATH.stat()
    assert status.st_size == MIB
    assert status.st_mode & 0o777 == 0o600
    assert status.st_blocks * 512 >= MIB
    assert arena.bytes.dtype == torch.uint8
    assert arena.bytes.numel() == MIB
    assert not arena.bytes.any()
    arena.close()


def test_who_maps_the_segment_sees_the_same_bytes() -> None:
    arena = Arena(NAME, MIB)
    arena.bytes[MIB - 1] = 7
    assert PATH.read_bytes()[-1] == 7
    arena.close()


def test_all_of_it_is_resident_from_the_start() -> None:
    arena = Arena(NAME, MIB)
    assert resident() == MIB
    arena.close()


def resident() -> int:
    """Bytes that the segment has in this process's tables."""
    sections = Path("/proc/self/smaps").read_text().split(f"/dev/shm/{NAME}\n")
    line = next(line for line in sections[1].splitlines() if line.startswith("Rss:"))
    return int(line.split()[1]) << 10


def test_closing_removes_the_name_and_a_second_time_does_nothing() -> None:
    arena = Arena(NAME, MIB)
    arena.close()
    assert not PATH.exists()
    arena.close()


def test_a_name_that_is_taken_is_refused_and_left_alone() -> None:
    PATH.write_bytes(b"somebody's")
    with pytest.raises(StartError, match=f"{NAME} exists: another server uses it"):
        Arena(NAME, MIB)
    assert PATH.read_bytes() == b"somebody's"


KILLED = """
import os, signal, sys
from engine.l1.arena import Arena
arena = Arena(sys.argv[1], 1 << 20)
assert os.path.exists(f"/dev/shm/{arena.name}")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_server_left_is_removed_and_the_living_stay() -> None:
    left = f"{PREFIX}{os.getpid()}_left"
    with subprocess.Popen([sys.executable, "-c", KILLED, left], cwd=ROOT) as killed:
        assert killed.wait(timeout=60) == -signal.SIGKILL
    living = Arena(f"{PREFIX}{os.getpid()}_living", MIB)
    assert living.name not in remove_leftovers()
    assert not (SHM / left).exists()
    assert (SHM / living.name).exists()
    living.close()


def test_what_is_no_arena_is_left_alone() -> None:
    folder = SHM / f"{PREFIX}{os.getpid()}_folder"
    link = SHM / f"{PREFIX}{os.getpid()}_link"
    folder.mkdir()
    link.symlink_to("/etc/hostname")
    PATH.write_bytes(b"of another name")
    try:
        assert {folder.name, link.name, NAME}.isdisjoint(remove_leftovers())
        assert (folder.is_dir(), link.is_symlink(), PATH.exists()) == (True, True, True)
    finally:
        folder.rmdir()
        link.unlink()


def test_an_arena_taken_for_a_leftover_while_it_is_made_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = fcntl.flock

    def lock_late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        PATH.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    arena = Arena(NAME, MIB)
    assert PATH.stat().st_size == MIB
    arena.close()


def test_a_size_that_does_not_fit_is_refused_and_leaves_nothing() -> None:
    with pytest.raises(StartError, match=r"^1073741824 GiB of L1 do not fit: /dev/shm has .* free for 1073741824 GiB"):
        Arena(NAME, 1 << 60)
    assert not PATH.exists()


def refused_by(*found: Room) -> Callable[[], Sequence[Room]]:
    return lambda: found


def test_a_memory_limit_refuses_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("a segment is made"))
    limit = Room("limit", "/sys/fs/cgroup/memory.max", 1 << 30, 1 << 20)
    with pytest.raises(
        StartError, match=r"^1 MiB of L1 do not fit: the memory limit /sys/fs/cgroup/memory\.max has 1 MiB"
    ):
        Arena(NAME, MIB, find_rooms=refused_by(limit))


def test_little_memory_beside_it_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    limit = Room("limit", "/sys/fs/cgroup/memory.max", 1 << 30, 100 * MIB)
    Arena(NAME, MIB, find_rooms=refused_by(limit)).close()
    [record] = caplog.records
    assert record.getMessage().startswith(
        "L1: /sys/fs/cgroup/memory.max has 100 MiB free, which leaves 99 MiB beside L1"
    )


def test_a_length_that_cannot_be_mapped_is_refused_and_leaves_nothing() -> None:
    with pytest.raises(StartError, match=r"cannot map \d+ GiB of shared memory: .* make l1\.max_size smaller"):
        Arena(NAME, MIB, 1 << 62)
    assert not PATH.exists()


def test_what_was_allocated_until_it_failed_is_given_back_though_the_error_is_held() -> None:
    opened: list[int] = []

    def fail(done: int) -> None:
        opened.append(os.open(PATH, os.O_RDONLY))
        raise InterruptedError

    with pytest.raises(InterruptedError) as caught:
        Arena(NAME, MIB, progress=fail)
    assert caught.tb is not None
    assert os.fstat(opened[0]).st_blocks == 0
    os.close(opened[0])


def test_a_kernel_that_cannot_populate_has_its_pages_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "populate", lambda address, length: False)
    arena = Arena(NAME, MIB)
    assert resident() == MIB
    arena.close()


def test_its_making_shows_progress_and_can_be_given_up() -> None:
    done: list[int] = []
    Arena(NAME, MIB, progress=done.append).close()
    assert done == [MIB]

    def give_up(done: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Arena(NAME, MIB, progress=give_up)
    assert not PATH.exists()


def test_it_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.l1.arena._STEP_BYTES", MIB)
    told: list[int] = []
    Arena(NAME, 2 * MIB + 4096, progress=told.append).close()
    assert told == [MIB, 2 * MIB, 2 * MIB + 4096]


def test_it_can_be_stopped_on_the_way_and_leaves_nothing() -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Arena(NAME, MIB, progress=stop)
    assert not PATH.exists()


def test_memory_that_turns_out_to_be_missing_is_refused_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StartError, match="No space left on device"):
        Arena(NAME, MIB)
    assert not PATH.exists()


def test_where_there_is_a_gpu_the_arena_is_pinned_and_unpinned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda *arguments: calls.append(("register", *arguments)) or 0,
        cudaHostUnregister=lambda *arguments: calls.append(("unregister", *arguments)),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    arena = Arena(NAME, MIB)
    place = arena.bytes.data_ptr()
    arena.close()
    arena.close()
    assert calls == [("register", place, MIB, 0), ("unregister", place)]


def test_an_arena_that_cannot_be_pinned_is_refused_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=lambda *_: 2))
    with pytest.raises(StartError, match="cannot pin 1 MiB of L1 for the GPU"):
        Arena(NAME, MIB)
    assert not PATH.exists()


def taken() -> int:
    """Bytes of memory that the segment takes."""
    return PATH.stat().st_blocks * 512


@contextmanager
def arena_of(size: int, length: int | None = None) -> Iterator[Arena]:
    made = Arena(NAME, size, length)
    try:
        yield made
    finally:
        made.close()


class TestResizing:
    def test_what_may_be_grown_into_is_mapped_and_takes_no_memory(self) -> None:
        with arena_of(MIB, 64 * MIB) as arena:
            assert (arena.length, arena.bytes.numel(), PATH.stat().st_size) == (64 * MIB,) * 3
            assert taken() == MIB

    def test_without_a_length_it_is_as_long_as_it_is_large(self) -> None:
        with arena_of(MIB) as arena:
            assert (arena.length, PATH.stat().st_size) == (MIB, MIB)

    def test_growing_takes_memory_and_says_how_far_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("engine.l1.arena._STEP_BYTES", MIB)
        told: list[int] = []
        with arena_of(MIB, 8 * MIB) as arena:
            arena.grow(MIB, 3 * MIB + 4096, told.append)
            assert taken() == 3 * MIB + 4096
            assert told == [2 * MIB, 3 * MIB, 3 * MIB + 4096]

    def test_what_is_discarded_is_given_back_and_who_maps_it_sees_zeros(self) -> None:
        with arena_of(4 * MIB) as arena, PATH.open("rb") as file, mmap(file.fileno(), 4 * MIB, prot=PROT_READ) as other:
            arena.bytes.fill_(7)
            assert other[2 * MIB] == 7
            arena.discard(2 * MIB, 4 * MIB)
            assert taken() == 2 * MIB
            assert other[: 2 * MIB] == b"\x07" * (2 * MIB)
            assert other[2 * MIB :] == bytes(2 * MIB)
            assert PATH.stat().st_size == 4 * MIB

    def test_a_discard_is_exact_to_the_page(self) -> None:
        with arena_of(MIB) as arena:
            arena.bytes.fill_(7)
            arena.discard(MIB - 8192, MIB - 4096)
            arena.discard(MIB, MIB)
            assert taken() == MIB - 4096
            assert arena.bytes[MIB - 8193] == arena.bytes[MIB - 4096] == 7
            assert not arena.bytes[MIB - 8192 : MIB - 4096].any()

    def test_what_was_discarded_can_be_grown_again_empty_and_written(self) -> None:
        with arena_of(2 * MIB) as arena, PATH.open("rb") as file, mmap(file.fileno(), 2 * MIB, prot=PROT_READ) as other:
            arena.bytes.fill_(7)
            arena.discard(MIB, 2 * MIB)
            arena.grow(MIB, 2 * MIB)
            assert taken() == 2 * MIB
            assert not arena.bytes[MIB:].any()
            arena.bytes[2 * MIB - 1] = 9
            assert other[2 * MIB - 1] == 9

    @pytest.mark.parametrize("steps", [0, 1, 2])
    def test_a_growth_that_fails_takes_nothing(self, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
        allocate, calls = os.posix_fallocate, []

        def refuse(descriptor: int, start: int, size: int) -> None:
            if len(calls) == steps:
                raise OSError(28, "No space left on device")
            calls.append(start)
            allocate(descriptor, start, size)

        monkeypatch.setattr("engine.l1.arena._STEP_BYTES", MIB)
        with arena_of(MIB, 4 * MIB) as arena:
            arena.bytes[:MIB].fill_(7)
            monkeypatch.setattr(os, "posix_fallocate", refuse)
            with pytest.raises(NoMemoryError, match="No space left on device"):
                arena.grow(MIB, 4 * MIB)
            assert len(calls) == steps
            assert taken() == MIB
            assert arena.bytes[:MIB].eq(7).all()
            monkeypatch.undo()
            arena.grow(MIB, 4 * MIB)
            assert taken() == 4 * MIB

    def test_a_growth_is_held_against_what_there_is_and_changes_nothing(self) -> None:
        found: list[Room] = []
        arena = Arena(NAME, MIB, 4 * MIB, find_rooms=lambda: found)
        found.append(Room("limit", "/sys/fs/cgroup/memory.max", 1 << 30, 66 * MIB))
        with pytest.raises(NoMemoryError, match=r"^3 MiB more of L1 do not fit: the memory limit .* has 66 MiB"):
            arena.grow(MIB, 4 * MIB)
        assert taken() == MIB
        arena.grow(MIB, 2 * MIB)
        assert taken() == 2 * MIB
        arena.close()


class TestHugePages:
    """What the kernel gives is told to the arena; whether this one gives any is not known."""

    @pytest.fixture
    def given(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Bytes of the mapping that are in huge pages; the last is what is found next and from then on."""
        sizes = [0]
        monkeypatch.setattr(huge_pages, "obstacle", lambda: None)
        monkeypatch.setattr(huge_pages, "page_bytes", lambda: 4096)
        monkeypatch.setattr(huge_pages, "mapped_huge", lambda *_: sizes.pop(0) if sizes[1:] else sizes[0])
        return sizes

    def test_nobody_asks_for_them_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages, "want_huge", lambda *_: pytest.fail("asked for"))
        monkeypatch.setattr(huge_pages, "mapped_huge", lambda *_: pytest.fail("counted"))
        Arena(NAME, MIB).close()

    def test_those_that_are_given_are_told(self, given: list[int], caplog: pytest.LogCaptureFixture) -> None:
        given[:] = [0, MIB]
        with caplog.at_level("INFO", arena_module.__name__):
            Arena(NAME, MIB, huge="require").close()
        assert [record.getMessage() for record in caplog.records] == ["L1: 1 MiB of 1 MiB are in huge pages"]

    def test_the_file_is_not_asked_to_allocate_small_ones(
        self, given: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: pytest.fail("small pages"))
        with closing(Arena(NAME, MIB, huge="try")):
            assert (taken(), resident()) == (MIB, MIB)

    def test_those_that_are_missing_are_told_where_they_are_tried(
        self, given: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        given[:] = [0, MIB // 2]
        Arena(NAME, MIB, huge="try").close()
        [record] = caplog.records
        assert record.levelname == "WARNING"
        assert record.getMessage().startswith(
            "L1: only 0.5 MiB of 1 MiB of L1 are in huge pages, since the kernel found"
        )

    def test_those_that_are_missing_refuse_where_they_are_required(self, given: list[int]) -> None:
        given[:] = [0, MIB // 2]
        with pytest.raises(StartError, match=r"^l1\.huge_pages is require, but only 0\.5 MiB of 1 MiB of L1"):
            Arena(NAME, MIB, huge="require")
        assert not PATH.exists()

    def test_a_kernel_that_gives_none_is_told_before_anything_is_allocated(
        self, given: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huge_pages, "obstacle", lambda: "a file says never")
        monkeypatch.setattr(os, "open", lambda *_: pytest.fail("a segment is made"))
        with pytest.raises(StartError, match=r"^l1\.huge_pages is require, but a file says never; or set it to try$"):
            Arena(NAME, MIB, huge="require")

    def test_what_is_grown_has_to_be_huge_too_and_what_was_there_does_not_count(self, given: list[int]) -> None:
        given[:] = [0, MIB]
        with closing(Arena(NAME, MIB, 4 * MIB, huge="require")) as arena:
            given[:] = [MIB, 2 * MIB]
            with pytest.raises(NoMemoryError, match=r"only 1 MiB of 3 MiB of L1 are in huge pages"):
                arena.grow(MIB, 4 * MIB)
            assert taken() == MIB
            given[:] = [MIB, 4 * MIB]
            arena.grow(MIB, 4 * MIB)
            assert taken() == 4 * MIB

    def test_on_this_kernel_it_works_or_says_why_not(self, caplog: pytest.LogCaptureFixture) -> None:
        size = 8 * MIB
        with caplog.at_level("INFO", arena_module.__name__), closing(Arena(NAME, size, huge="try")) as arena:
            assert (resident(), bool(arena.bytes.any())) == (size, False)
            arena.bytes.fill_(7)
            arena.discard(5 * MIB, size)
            assert arena.bytes[: 5 * MIB].eq(7).all()
            assert not arena.bytes[5 * MIB :].any()
            arena.grow(5 * MIB, size)
            assert resident() == size
        assert all("huge pages" in record.getMessage() for record in caplog.records)


class FakeCuda:
    """Notes what is pinned, as ranges of the arena; refuses where it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pinned: dict[int, int] = {}
        self.refuses = False
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: self)

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        if self.refuses:
            return 2
        overlapping = [
            start for start, length in self.pinned.items() if start < address + size and address < start + length
        ]
        assert not overlapping, "a range is pinned twice"
        self.pinned[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> None:  # noqa: N802
        del self.pinned[address]


class TestPinning:
    @pytest.fixture
    def cuda(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        return FakeCuda(monkeypatch)

    def test_what_is_grown_is_pinned_apart_and_all_is_unpinned_at_the_end(self, cuda: FakeCuda) -> None:
        with arena_of(MIB, 4 * MIB) as arena:
            place = arena.bytes.data_ptr()
            assert cuda.pinned == {place: MIB}
            arena.grow(MIB, 2 * MIB)
            arena.grow(2 * MIB, 4 * MIB)
            assert cuda.pinned == {place: MIB, place + MIB: MIB, place + 2 * MIB: 2 * MIB}
        assert cuda.pinned == {}

    def test_what_is_pinned_is_not_given_back_and_not_pinned_again(self, cuda: FakeCuda) -> None:
        """The GPU would go on with the pages it knows, and others would see new ones."""
        with arena_of(2 * MIB, 4 * MIB) as arena:
            place = arena.bytes.data_ptr()
            arena.bytes[: 2 * MIB].fill_(7)
            arena.discard(MIB, 2 * MIB)
            assert taken() == 2 * MIB
            assert arena.bytes[: 2 * MIB].eq(7).all()
            arena.grow(MIB, 3 * MIB)
            assert taken() == 3 * MIB
            assert cuda.pinned == {place: 2 * MIB, place + 2 * MIB: MIB}

    def test_a_growth_that_cannot_be_pinned_takes_nothing_and_can_be_tried_again(self, cuda: FakeCuda) -> None:
        with arena_of(MIB, 4 * MIB) as arena:
            place = arena.bytes.data_ptr()
            cuda.refuses = True
            with pytest.raises(NoMemoryError, match="cannot pin 3 MiB of L1"):
                arena.grow(MIB, 4 * MIB)
            assert (taken(), cuda.pinned) == (MIB, {place: MIB})
            cuda.refuses = False
            arena.grow(MIB, 4 * MIB)
            assert (taken(), cuda.pinned) == (4 * MIB, {place: MIB, place + MIB: 3 * MIB})
