"""Servers that are killed in the middle of what they do to a folder: what the next one and the living ones find."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

import pytest

from engine.l2 import filesystem_l2
from engine.l2.base import AbsentError, FullError
from engine.l2.filesystem_l2 import Adapter
from tests.support.polling import until
from tests.unit.engine.l2 import children
from tests.unit.engine.l2.folder_door import BLOCK, FolderDoor

KILLS = 50
CAPACITY = 64 * BLOCK
NAMES = [f"{number:02x}" * 48 for number in range(40)]


def sealed(size: int, seed: object) -> bytes:
    """Bytes that tell whether they are whole."""
    content = Random(f"{seed}").randbytes(size)
    return hashlib.sha256(content).digest() + content


def is_whole(content: bytes | None) -> bool:
    return content is not None and hashlib.sha256(content[32:]).digest() == content[:32]


def write(adapter: Adapter, name: str, content: bytes) -> None:
    """In two buffers, so that a write can end in the middle."""
    view = memoryview(content)
    adapter.write(name, [view[: len(view) // 2], view[len(view) // 2 :]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def door(folder: Path) -> FolderDoor:
    return FolderDoor(folder)


def opened(folder: Path) -> Adapter:
    adapter = Adapter(path=str(folder), capacity=CAPACITY, keep_free=0, fsync=True)
    adapter.open([])
    return adapter


# At every single moment of a call

SMALL, LARGE = sealed(5000, "small"), sealed(9000, "large")
CALLS: dict[str, Callable[[Adapter], None]] = {
    "open": lambda adapter: adapter.open([]),
    "write": lambda adapter: write(adapter, "new", LARGE),
    "replace": lambda adapter: write(adapter, "old", LARGE),
    "delete": lambda adapter: adapter.delete(["old", "other"]),
    "evict": lambda adapter: write(adapter, "huge", sealed(CAPACITY - 4000, "huge")),
}

STEPS = {"open": 149}
"""Of a thousand moments that are alike for each shard only some."""


@pytest.fixture
def deaths(folder: Path, door: FolderDoor, request: pytest.FixtureRequest) -> Callable[[str], Iterator[Adapter]]:
    def die_everywhere(name: str) -> Iterator[Adapter]:
        """Kills a server at each moment of the call, and yields another that lives on the same folder."""
        living, moment, killed = opened(folder), 0, True
        while killed:
            write(living, "old", SMALL)
            write(living, "other", SMALL)
            living.delete(["new", "huge"])
            killed = children.run_and_die(
                moment, CALLS[name], Adapter(path=str(folder), capacity=CAPACITY, keep_free=0)
            )
            yield living
            moment += STEPS.get(name, 1)
        assert moment > 5

    return die_everywhere


@pytest.mark.parametrize("call", CALLS)
def test_those_that_live_find_whole_objects_and_a_right_account_and_the_next_start_nothing_left(
    deaths: Callable[[str], Iterator[Adapter]], door: FolderDoor, folder: Path, call: str
) -> None:
    for living in deaths(call):
        assert living.used() == door.stored()
        assert door.occupied() <= CAPACITY
        names = {stored.name for stored in living.scan()}
        assert names == door.names() <= {"old", "other", "new", "huge"}
        assert all(is_whole(door.get(name)) for name in names)
        assert opened(folder).used() == door.stored()
        assert door.leftovers() == []


@pytest.mark.parametrize("call", CALLS)
def test_the_next_write_of_those_that_live_removes_what_was_left_but_for_empty_files(
    deaths: Callable[[str], Iterator[Adapter]], door: FolderDoor, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem_l2, "RECOUNT_SECONDS", 0)
    monkeypatch.setattr(filesystem_l2, "_RECOUNT_SHARE", 0)
    left = 0
    for living in deaths(call):
        left += len(door.leftovers())
        write(living, "other", LARGE)
        assert all(path.stat().st_size == 0 for path in door.leftovers())
        assert living.used() == door.stored()
    assert left or call in ("open", "delete")
    for _ in range(256):
        write(living, "other", SMALL)
    assert door.leftovers() == []


# At random moments of real work


def work(folder: Path, seed: int) -> None:
    """Writes, reads and deletes without end."""
    random = Random(seed)
    adapter = opened(folder)
    while True:
        name = random.choice(NAMES)
        with suppress(AbsentError, FullError):
            match random.randrange(6):
                case 0:
                    adapter.delete([name])
                case 1:
                    adapter.read_into(name, [memoryview(bytearray(1000))])
                case _:
                    write(adapter, name, sealed(random.randrange(10 * BLOCK), random.random()))


def kill_within(child: BaseProcess, seconds: float) -> None:
    """Kills it at a moment so far away; the test asserts nothing of how long that was."""
    child.join(seconds)
    child.kill()
    assert children.ended(child) == children.KILLED


def test_after_each_of_fifty_kills_the_account_is_what_is_on_the_disk(folder: Path, door: FolderDoor) -> None:
    random = Random(os.urandom(8))
    opened(folder)
    for seed in range(KILLS):
        before = time.time_ns()
        child = children.start(work, folder, seed)
        until(lambda: changed_since(door, before), "the child writes")  # noqa: B023
        kill_within(child, random.random() * 0.03)
        adapter = opened(folder)
        assert adapter.used() == door.stored()
        assert door.leftovers() == []
        assert door.occupied() <= CAPACITY
        assert all(is_whole(door.get(stored.name)) for stored in adapter.scan())


def test_two_servers_of_which_one_is_killed_again_and_again_never_pass_the_capacity(
    folder: Path, door: FolderDoor
) -> None:
    random = Random(os.urandom(8))
    opened(folder)
    lasting = children.start(work, folder, -1)
    for seed in range(10):
        child = children.start(work, folder, seed)
        for _ in range(random.randrange(10)):
            assert door.occupied() <= CAPACITY
        kill_within(child, random.random() * 0.02)
        assert door.occupied() <= CAPACITY
    assert lasting.is_alive()
    kill_within(lasting, 0)
    adapter = opened(folder)
    assert adapter.used() == door.stored()
    assert door.leftovers() == []


def changed_since(door: FolderDoor, time_ns: int) -> bool:
    for path in door.files():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime_ns > time_ns:
                return True
    return False
