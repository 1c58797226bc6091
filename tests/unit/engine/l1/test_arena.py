"""The arena is one segment of shared memory, there from construction to `close`."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine import StartError
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
