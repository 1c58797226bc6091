"""The arena is one segment of shared memory, there from construction to `close`."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import PROT_READ, mmap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine import NoMemoryError, StartError
from engine.l1.arena import PREFIX, Arena, remove_leftovers
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
    sections = Path("/proc/self/smaps").read_text().split(f"/dev/shm/{NAME}")
    resident = next(line for line in sections[1].splitlines() if line.startswith("Rss:"))
    assert int(resident.split()[1]) == 1024
    arena.close()


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
    with pytest.raises(StartError, match=r"does not fit into /dev/shm, which has \d+ bytes free"):
        Arena(NAME, 1 << 60)
    assert not PATH.exists()


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
    with pytest.raises(StartError, match="cannot pin 1048576 bytes of L1 for the GPU"):
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
            with pytest.raises(NoMemoryError, match="cannot pin 3145728 bytes"):
                arena.grow(MIB, 4 * MIB)
            assert (taken(), cuda.pinned) == (MIB, {place: MIB})
            cuda.refuses = False
            arena.grow(MIB, 4 * MIB)
            assert (taken(), cuda.pinned) == (4 * MIB, {place: MIB, place + MIB: 3 * MIB})
