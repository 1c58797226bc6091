"""Segments of killed workers are removed, and those of the living are not, whoever they belong to."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.transfer import leftovers
from engine.transfer.leftovers import remove_if_unused, remove_leftovers

Make = Callable[[str], Path]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes segments whose names begin so and carry this process's id."""
    made: list[Path] = []

    def segment(prefix: str = "lmcache_kv") -> Path:
        made.append(Path("/dev/shm", f"{prefix}_{os.getpid()}_{len(made)}"))
        made[-1].write_bytes(b"0123456789")
        return made[-1]

    yield segment
    for path in made:
        path.unlink(missing_ok=True)


def test_what_nobody_has_open_is_removed(make: Make) -> None:
    left = make("lmcache_kv")
    assert remove_if_unused(left.name)
    assert not left.exists()


def test_a_start_finds_what_is_left(make: Make) -> None:
    left, other, ours = make("lmcache_kv"), make("psm_of_somebody"), make("lmcache_kv")
    with ours.open("r+b") as file:
        found = remove_leftovers()
        assert left.name in found
        assert {other.name, ours.name}.isdisjoint(found)
        assert ours.exists()
        file.read()


@pytest.mark.parametrize("mode", ["rb", "r+b"], ids=["read", "written"])
def test_what_somebody_has_open_is_left_alone(make: Make, mode: str) -> None:
    used = make("lmcache_kv")
    with used.open(mode):
        assert not remove_if_unused(used.name)
    assert used.exists()


def test_what_another_process_maps_is_left_alone_until_it_ends(make: Make) -> None:
    used = make("lmcache_kv")
    code = (
        "import mmap, os, sys\n"
        f"fd = os.open({str(used)!r}, os.O_RDWR)\n"
        "kept = mmap.mmap(fd, 10)\n"
        "os.close(fd)\n"
        "print('mapped', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mapped\n"
        assert not remove_if_unused(used.name)
        assert used.read_bytes() == b"0123456789"
        other.kill()
        other.wait(20)
        assert remove_if_unused(used.name)


def test_what_is_mapped_and_has_lost_its_name_is_not_mixed_up_with_what_has_the_name_now(make: Make) -> None:
    used = make("lmcache_kv")
    with used.open("r+b") as file, mmap.mmap(file.fileno(), 10) as mapped:
        used.unlink()
        used.write_bytes(b"another's")
        assert remove_if_unused(used.name)
        assert mapped[:] == b"0123456789"


@pytest.mark.parametrize("name", ["lmcache_kv_1", "lmcache_kv_1_2_3", "lmcache_kv_1_2x", "../lmcache_kv_1_2", ""])
def test_other_names_are_nobodys_business(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "SHM_FOLDER", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm" / name).touch()
    assert not remove_if_unused(name)


def test_a_name_that_is_a_link_is_left_alone(make: Make, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.touch()
    link = make("lmcache_kv")
    link.unlink()
    link.symlink_to(target)
    assert not remove_if_unused(link.name)
    assert target.exists()


def test_what_is_not_there_is_no_matter() -> None:
    assert not remove_if_unused("lmcache_kv_0_0")


def test_whoever_opens_a_segment_while_it_is_looked_at_does_not_end_us(make: Make) -> None:
    """The kernel tells the holder of a lease by a signal, whose default is the end of the process."""
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL
    segment = make("lmcache_kv")
    descriptor = os.open(segment, os.O_RDONLY)
    leftovers._lease(descriptor)
    code = f"open({str(segment)!r}, 'rb').read()"
    with subprocess.Popen([sys.executable, "-c", code]) as opener:
        with pytest.raises(subprocess.TimeoutExpired):
            opener.wait(0.5)
        os.close(descriptor)
        assert opener.wait(20) == 0
