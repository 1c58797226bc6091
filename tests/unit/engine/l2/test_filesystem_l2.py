"""The adapter of folders: the suite in all its modes, its limits, faults of the file system, and foreign files."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from engine.l2 import filesystem_l2
from engine.l2.base import AbsentError, DeniedError, FullError, L2Error, Stored, UnavailableError, Usage
from engine.l2.filesystem_l2 import Adapter
from engine.l2.folder import Count, Folder, occupied
from tests.support.polling import until
from tests.unit.engine.l2 import children
from tests.unit.engine.l2.adapter_suite import MIB, PAGE, AdapterSuite, BackDoor, Memory, noise
from tests.unit.engine.l2.folder_door import BLOCK, FolderDoor


class FilesystemSuite(AdapterSuite):
    settings: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def adapter(self, tmp_path: Path, memory: Memory) -> Iterator[Adapter]:
        adapter = Adapter(path=str(tmp_path / "store"), **self.settings)
        adapter.open([memory.whole])
        yield adapter
        adapter.close()

    @pytest.fixture
    def back_door(self, tmp_path: Path) -> BackDoor:
        return FolderDoor(tmp_path / "store")

    def occupied(self, size: int) -> int:
        return occupied(size)


class TestFilesystemAdapter(FilesystemSuite):
    pass


class TestWithACapacityAndFsync(FilesystemSuite):
    settings: ClassVar = {"capacity": 32 << 20, "fsync": True}


class TestWithDirectIO(FilesystemSuite):
    settings: ClassVar = {"direct": True}


@pytest.fixture
def memory() -> Memory:
    return Memory(MIB)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def door(folder: Path) -> FolderDoor:
    return FolderDoor(folder)


@pytest.fixture
def make(folder: Path) -> Callable[..., Adapter]:
    """An adapter on the folder, opened."""

    def make(**settings: Any) -> Adapter:
        adapter = Adapter(**{"path": str(folder), "keep_free": 0, **settings})
        adapter.open([])
        return adapter

    return make


def write(adapter: Adapter, name: str, blocks: float = 1, seed: int = 0) -> None:
    adapter.write(name, [memoryview(noise(int(blocks * BLOCK), seed))])


def read(adapter: Adapter, name: str, blocks: float = 1) -> bytes:
    content = bytearray(int(blocks * BLOCK))
    assert adapter.read_into(name, [memoryview(content)]) == len(content)
    return bytes(content)


def while_within(door: FolderDoor, capacity: int, going_on: Callable[[], bool]) -> None:
    """Looks at the disk again and again."""

    def look() -> bool:
        assert door.occupied() <= capacity
        return not going_on()

    until(look, "all is written")


# Capacity


def test_the_least_recently_used_go_when_the_capacity_is_full(make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make(capacity=3 * BLOCK)
    for age, name in enumerate("abc"):
        write(adapter, name)
        door.age(name, 3600 - age)
    read(adapter, "a")
    write(adapter, "d")
    assert door.names() == {*"acd"}
    write(adapter, "e", 2)
    assert door.names() <= {*"ade"}
    assert "c" not in door.names()
    assert "e" in door.names()


def test_a_use_within_a_minute_of_the_last_writes_no_stamp(make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make()
    write(adapter, "a")
    for age, renewed in ((50.0, False), (70.0, True)):
        door.age("a", age)
        before = door.path("a").stat().st_mtime_ns
        read(adapter, "a")
        assert (door.path("a").stat().st_mtime_ns != before) == renewed


def test_asking_whether_it_is_there_is_no_use(make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make(capacity=2 * BLOCK)
    for age, name in enumerate("ab"):
        write(adapter, name)
        door.age(name, 3600 - age)
    adapter.contains(["a"])
    write(adapter, "c")
    assert door.names() == {*"bc"}


def test_what_was_used_since_the_last_look_at_the_folder_stays(make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make(capacity=16 * BLOCK)
    names = [f"{number:02x}" for number in range(16)]
    for age, name in enumerate(names):
        write(adapter, name)
        door.age(name, 3600 - age)
    write(adapter, "x")
    read(adapter, names[1])
    write(adapter, "y")
    assert {*names} - door.names() == {names[0], names[2]}


def test_what_is_larger_than_the_capacity_is_refused_and_evicts_nothing(
    make: Callable[..., Adapter], door: FolderDoor
) -> None:
    adapter = make(capacity=3 * BLOCK)
    write(adapter, "a")
    with pytest.raises(FullError, match="16384 bytes is larger than the capacity of 12288"):
        write(adapter, "a", 3.1)
    assert door.names() == {"a"}


def test_an_object_as_large_as_the_capacity_fits_also_if_it_replaces_another(
    make: Callable[..., Adapter], door: FolderDoor
) -> None:
    adapter = make(capacity=3 * BLOCK)
    for seed in range(3):
        write(adapter, "a", 3, seed)
        assert door.get("a") == noise(3 * BLOCK, seed)
    assert adapter.used() == Usage(1, 3 * BLOCK) == door.stored()


def test_empty_objects_count(make: Callable[..., Adapter]) -> None:
    adapter = make(capacity=4 * BLOCK)
    for number in range(6):
        adapter.write(f"{number}", [])
    assert adapter.used() == Usage(4, 4 * BLOCK)


def test_a_capacity_that_became_smaller_holds_from_the_start(make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make()
    for number in range(20):
        write(adapter, f"{number:02x}")
        door.age(f"{number:02x}", 3600 - number)
    make(capacity=5 * BLOCK)
    assert door.names() == {f"{number:02x}" for number in range(15, 20)}


def test_servers_count_and_evict_what_others_have_written(make: Callable[..., Adapter], door: FolderDoor) -> None:
    first, second = make(capacity=4 * BLOCK), make(capacity=4 * BLOCK)
    for number in range(10):
        write(first if number % 2 else second, f"{number}")
        assert first.used() == second.used() == door.stored()
    assert len(door.names()) == 4


def test_threads_do_not_pass_the_capacity_together(make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make(capacity=40 * BLOCK)

    def work(seed: int) -> None:
        for number in range(40):
            write(adapter, f"{seed}-{number}", 8)

    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(work, seed) for seed in range(4)]
        while_within(door, 40 * BLOCK, lambda: any(not thread.done() for thread in running))
        for thread in running:
            thread.result()
    assert adapter.used() == door.stored()


def test_processes_do_not_pass_the_capacity_together(make: Callable[..., Adapter], door: FolderDoor) -> None:
    def work(seed: int) -> None:
        adapter = make(capacity=40 * BLOCK)
        for number in range(60):
            write(adapter, f"{seed}-{number}", 9)
            adapter.delete([f"{seed}-{number - 3}"])

    adapter = make(capacity=40 * BLOCK)
    running = [children.start(work, seed) for seed in range(2)]
    while_within(door, 40 * BLOCK, lambda: any(child.is_alive() for child in running))
    assert [children.ended(child) for child in running] == [0, 0]
    assert adapter.used() == door.stored()
    assert door.leftovers() == []


# The room of the file system


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """The folder, as a file system of 4 MiB."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "kvkeep-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def free(folder: Path) -> int:
    return os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize


def test_room_that_has_to_stay_free_stays_free(small_disk: Path, make: Callable[..., Adapter]) -> None:
    adapter = make(keep_free=MIB)
    for number in range(20):
        write(adapter, f"{number}", 100)
        assert free(small_disk) >= MIB
    assert len(list(adapter.scan())) >= 5


def test_what_others_fill_is_not_taken_from_them(small_disk: Path, make: Callable[..., Adapter]) -> None:
    adapter = make(keep_free=MIB)
    write(adapter, "a")
    (small_disk / "others").write_bytes(bytes(3 * MIB))
    with pytest.raises(FullError, match="has no room for 4096 bytes"):
        write(adapter, "b")
    (small_disk / "others").unlink()
    write(adapter, "b")
    assert adapter.contains(["b"]) == [True]


def test_more_free_room_than_there_is_means_no_object_at_all(make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make(keep_free=1 << 60)
    with pytest.raises(FullError):
        write(adapter, "a")
    assert door.files() == []


def test_a_full_disk_is_told_and_costs_nothing_that_is_there(
    small_disk: Path, make: Callable[..., Adapter], door: FolderDoor
) -> None:
    adapter = make(keep_free=-(1 << 40))
    write(adapter, "a", 100)
    for _ in range(3):
        with pytest.raises(FullError, match="No space left"):
            write(adapter, "a", 1500)
    assert door.get("a") == noise(100 * BLOCK)
    assert door.leftovers() == []
    assert adapter.used() == door.stored()
    write(adapter, "b", 100)
    assert read(adapter, "b", 100) == noise(100 * BLOCK)


def test_a_limit_of_the_size_of_files_is_told(make: Callable[..., Adapter], door: FolderDoor) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20 * BLOCK, 20 * BLOCK))
        adapter = make()
        write(adapter, "a", 20)
        with pytest.raises(FullError, match="File too large"):
            write(adapter, "a", 20.5)
        assert read(adapter, "a", 20) == noise(20 * BLOCK)
        assert adapter.used() == Usage(1, 20 * BLOCK)

    assert children.run(limited) == 0
    assert door.leftovers() == []


# Rights


@pytest.fixture
def anybodys() -> Iterator[Path]:
    """A folder below which others than this user can work."""
    path = Path(tempfile.mkdtemp(prefix="kvkeep-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


NOBODY = 65534


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_lost_rights_are_told_and_once_they_are_back_all_goes_on(anybodys: Path) -> None:
    folder = anybodys / "store"
    folder.mkdir()

    def give_to(user: int) -> None:
        os.seteuid(0)
        os.chown(folder, user, user)
        os.seteuid(NOBODY)

    def work() -> None:
        give_to(NOBODY)
        adapter = Adapter(path=str(folder), keep_free=0)
        adapter.open([])
        write(adapter, "a")
        folder.chmod(0o700)
        give_to(0)
        calls: list[Callable[[], object]] = [
            lambda: write(adapter, "a"),
            lambda: read(adapter, "a"),
            lambda: adapter.contains(["a"]),
            lambda: adapter.delete(["a"]),
            lambda: list(adapter.scan()),
            adapter.used,
            lambda: adapter.open([]),
        ]
        for call in calls:
            with pytest.raises(DeniedError, match="Permission denied"):
                call()
        give_to(NOBODY)
        assert read(adapter, "a") == noise(BLOCK)
        write(adapter, "b")
        assert adapter.used() == Usage(2, 2 * BLOCK)

    assert children.run(work) == 0


def test_a_file_system_that_became_read_only_can_still_be_read(
    small_disk: Path, make: Callable[..., Adapter], door: FolderDoor
) -> None:
    adapter = make()
    write(adapter, "a")
    door.age("a", 3600)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DeniedError, match="Read-only file system"):
        write(adapter, "b")
    with pytest.raises(DeniedError):
        adapter.delete(["a"])
    assert read(adapter, "a") == noise(BLOCK)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    write(adapter, "b")
    assert adapter.used() == Usage(2, 2 * BLOCK) == door.stored()


# The folder goes and comes


def test_a_folder_that_is_removed_and_comes_back_is_used_again(
    folder: Path, make: Callable[..., Adapter], door: FolderDoor
) -> None:
    adapter = make(capacity=10 * BLOCK)
    write(adapter, "a")
    write(adapter, "b")
    away = folder.with_name("away")
    folder.rename(away)
    assert adapter.contains(["a"]) == [False]
    assert list(adapter.scan()) == []
    with pytest.raises(AbsentError):
        read(adapter, "a")
    away.rename(folder)
    assert read(adapter, "a") == noise(BLOCK)
    assert adapter.used() == Usage(2, 2 * BLOCK)


def test_a_folder_that_is_lost_is_made_again(folder: Path, make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make(capacity=10 * BLOCK)
    write(adapter, "a")
    shutil.rmtree(folder)
    write(adapter, "b")
    assert adapter.used() == Usage(1, BLOCK) == door.stored()


def test_a_part_of_the_folder_that_is_lost_is_made_again(make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make()
    shutil.rmtree(door.path("a").parents[1])
    write(adapter, "a")
    assert read(adapter, "a") == noise(BLOCK)


def test_a_folder_that_is_lost_during_a_write_is_told(
    folder: Path, make: Callable[..., Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make()

    def lose(descriptor: int, buffers: Sequence[memoryview]) -> None:
        shutil.rmtree(folder)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem_l2, "write_all", lose)
        with pytest.raises(UnavailableError, match="No such file"):
            write(adapter, "a")
    write(adapter, "a")
    assert read(adapter, "a") == noise(BLOCK)


def test_folders_above_are_made(tmp_path: Path) -> None:
    adapter = Adapter(path=str(tmp_path / "a" / "b" / "c"), keep_free=0)
    adapter.open([])
    assert (tmp_path / "a" / "b" / "c").stat().st_mode & 0o777 == 0o700


def test_a_path_that_cannot_be_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match=r"opening .*file/store failed: Not a directory"):
        Adapter(path=str(tmp_path / "file" / "store")).open([])


# The account


def test_a_start_adopts_what_is_there(make: Callable[..., Adapter], door: FolderDoor, folder: Path) -> None:
    first = make()
    for number in range(30):
        write(first, f"{number:02x}", number)
    (folder / "account").unlink()
    assert make().used() == door.stored()
    assert sorted(make().scan()) == [Stored(f"{number:02x}", number * BLOCK) for number in range(30)]


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(8224), bytes(100_000)])
def test_a_damaged_account_is_counted_again_at_once(
    make: Callable[..., Adapter], door: FolderDoor, folder: Path, content: bytes
) -> None:
    adapter = make(capacity=10 * BLOCK)
    write(adapter, "a", 3)
    (folder / "account").write_bytes(content)
    assert adapter.used() == Usage(1, 3 * BLOCK)
    write(adapter, "b")
    assert adapter.used() == door.stored()


def test_a_lost_account_is_counted_again_at_once(make: Callable[..., Adapter], folder: Path) -> None:
    adapter = make(capacity=4 * BLOCK)
    write(adapter, "a", 3)
    (folder / "account").unlink()
    write(adapter, "b", 2)
    assert adapter.used() == Usage(1, 2 * BLOCK)


def test_while_another_server_is_stopped_with_the_account_writes_fail_in_time_and_reads_go_on(
    make: Callable[..., Adapter], door: FolderDoor
) -> None:
    adapter = make(timeout=0.05)
    write(adapter, "a")
    calls: list[Callable[[], object]] = [
        lambda: write(adapter, "a"),
        lambda: adapter.delete(["a"]),
        adapter.used,
        lambda: adapter.open([]),
    ]
    with door.account_locked():
        for call in calls:
            with pytest.raises(UnavailableError, match="locked for too long by another server"):
                call()
        assert read(adapter, "a") == noise(BLOCK)
        assert adapter.contains(["a"]) == [True]
        assert list(adapter.scan()) == [Stored("a", BLOCK)]
    write(adapter, "b")
    assert adapter.used() == door.stored()


@pytest.fixture
def recounting_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the folder at each write."""
    monkeypatch.setattr(filesystem_l2, "RECOUNT_SECONDS", 0)
    monkeypatch.setattr(filesystem_l2, "_RECOUNT_SHARE", 0)


@pytest.mark.usefixtures("recounting_always")
def test_what_others_do_to_the_files_is_noticed_as_writes_go_on(make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make()
    for number in range(20):
        write(adapter, f"{number:02x}")
    for number in range(10):
        door.path(f"{number:02x}").unlink()
    door.put("restored", bytes(5 * BLOCK))
    for _ in range(256):
        write(adapter, "ff")
    assert adapter.used() == door.stored() == Usage(12, 16 * BLOCK)


def test_deleting_what_was_never_counted_leaves_a_right_account(make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make()
    write(adapter, "a")
    door.put("restored", bytes(5 * BLOCK))
    adapter.delete(["restored"])
    assert adapter.used() == door.stored() == Usage(1, BLOCK)


# Temporary files


def test_a_start_removes_what_nobody_writes_and_spares_what_somebody_does(
    make: Callable[..., Adapter], door: FolderDoor
) -> None:
    make()
    left, living = (door.unfinished("a", 5 * BLOCK, number) for number in range(2))
    left.touch()
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        make()
        assert door.leftovers() == [living]
    make()
    assert door.leftovers() == []


@pytest.mark.usefixtures("recounting_always")
def test_what_is_being_written_counts_and_what_was_left_does_not_for_long(
    make: Callable[..., Adapter], door: FolderDoor
) -> None:
    living = door.unfinished("a", 3 * BLOCK)
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        adapter = make(capacity=4 * BLOCK)
        write(adapter, "b")
        with pytest.raises(FullError):
            write(adapter, "c", 2)
    write(adapter, "c", 4)
    assert door.leftovers() == []
    assert adapter.used() == Usage(1, 4 * BLOCK)


def test_room_of_a_killed_server_comes_back_before_a_write_is_refused(
    make: Callable[..., Adapter], door: FolderDoor
) -> None:
    adapter = make(capacity=4 * BLOCK)
    write(adapter, "a")
    left = door.unfinished("b", 3 * BLOCK)
    with left.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        adapter.open([])
    write(adapter, "b", 4)
    assert door.leftovers() == []
    assert adapter.used() == Usage(1, 4 * BLOCK)


def test_a_file_that_is_taken_for_left_before_it_counts_is_made_again(folder: Path, door: FolderDoor) -> None:
    counting = Folder(str(folder))
    with counting.draft("a", BLOCK, sync=False) as draft:
        assert counting.count(draft.shard) == Count(reserved=0)
        assert door.leftovers() == []
        draft.claim()
        assert counting.count(draft.shard) == Count(reserved=BLOCK)
        assert door.leftovers() == [Path(draft.path)]


def test_a_failed_write_leaves_nothing(
    make: Callable[..., Adapter], door: FolderDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make()
    write(adapter, "a")
    for error in (errno.EIO, errno.EDQUOT, errno.ENOSPC, errno.EROFS):

        def fail(*_: object, error: int = error) -> int:
            raise OSError(error, os.strerror(error))

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", fail)
            with pytest.raises(L2Error, match=os.strerror(error)):
                write(adapter, "a", 2)
    assert door.leftovers() == []
    assert door.get("a") == noise(BLOCK)
    assert adapter.used() == door.stored()


# Foreign files


def test_foreign_files_are_left_alone_and_never_read(
    make: Callable[..., Adapter], door: FolderDoor, folder: Path, tmp_path: Path
) -> None:
    shard = door.path("aa").parent
    shard.mkdir(parents=True)
    files = [folder / "README", folder / "a" / "notes", shard / "a.txt", shard / "UPPERaa", shard / "in-another-bb"]
    files += [folder / "a" / "b", folder / "writing" / "a.5.tmp", folder / "writing" / "a.xyz.0000000000000000.tmp"]
    (folder / "writing").mkdir()
    for path in files:
        path.write_bytes(b"foreign")
    (shard / "folder-aa").mkdir()
    os.mkfifo(shard / "pipe-aa")
    (tmp_path / "secret").write_bytes(b"secret")
    (shard / "link-aa").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "writing" / f"pipe.5.{0:016x}.tmp")
    names = ["folder-aa", "pipe-aa", "link-aa", "in-ab"]
    adapter = make(capacity=2 * BLOCK)
    for round_ in range(2):
        assert adapter.contains(names) == [False] * 4
        for name in names:
            with pytest.raises(AbsentError):
                read(adapter, name)
        adapter.delete(names)
        assert list(adapter.scan()) == [Stored("x-aa", BLOCK)] * round_
        assert adapter.used() == Usage(round_, round_ * BLOCK)
        write(adapter, "x-aa")
    assert all(path.read_bytes() == b"foreign" for path in files)
    assert (shard / "folder-aa").is_dir()
    assert (shard / "pipe-aa").exists()
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_a_folder_in_the_place_of_an_object_is_told(make: Callable[..., Adapter], door: FolderDoor) -> None:
    adapter = make()
    door.path("a").mkdir(parents=True)
    with pytest.raises(UnavailableError, match="Is a directory"):
        write(adapter, "a")
    assert door.leftovers() == []
    assert adapter.used() == Usage(0, 0)


# Direct I/O and several buffers


@pytest.fixture
def flags_of_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the open file in each call that wrote or read an object."""
    found: list[int] = []

    def watched(function: Callable[..., int]) -> Callable[..., int]:
        def watching(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
            found.append(fcntl.fcntl(descriptor, fcntl.F_GETFL))
            return function(descriptor, buffers, offset)

        return watching

    monkeypatch.setattr(os, "pwritev", watched(os.pwritev))
    monkeypatch.setattr(os, "preadv", watched(os.preadv))
    return found


@pytest.mark.parametrize(
    ("shift", "sizes", "direct"),
    [(0, [PAGE, 4 * PAGE], True), (0, [PAGE, 4 * PAGE + 1], False), (512, [PAGE, 4 * PAGE], False), (0, [PAGE], True)],
)
def test_whole_pages_go_past_the_page_cache_and_others_do_not(
    make: Callable[..., Adapter], memory: Memory, flags_of_writes: list[int], shift: int, sizes: list[int], direct: bool
) -> None:
    adapter = make(direct=True)
    content = noise(sum(sizes))
    adapter.write("a", memory.hold(content, *sizes, shift=shift))
    buffers = memory.cut(*sizes, shift=shift)
    adapter.read_into("a", buffers)
    assert b"".join(buffers) == content
    assert [bool(flags & os.O_DIRECT) for flags in flags_of_writes] == [direct] * 2


def test_a_file_system_that_refuses_direct_io_late_gets_the_bytes_otherwise(
    make: Callable[..., Adapter], memory: Memory, door: FolderDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(function: Callable[..., int]) -> Callable[..., int]:
        def refuse(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return function(descriptor, buffers, offset)

        return refuse

    monkeypatch.setattr(os, "pwritev", refusing(os.pwritev))
    monkeypatch.setattr(os, "preadv", refusing(os.preadv))
    adapter = make(direct=True)
    content = noise(3 * PAGE)
    adapter.write("a", memory.hold(content, PAGE, 2 * PAGE))
    buffers = memory.cut(3 * PAGE)
    assert adapter.read_into("a", buffers) == 3 * PAGE
    assert bytes(buffers[0]) == content == door.get("a")


def test_calls_that_move_only_a_part_go_on_behind_it(
    make: Callable[..., Adapter], memory: Memory, door: FolderDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_some, read_some = os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: write_some(fd, [buffers[0][:700]], offset))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: read_some(fd, [buffers[0][:900]], offset))
    adapter = make()
    content = noise(10_000)
    adapter.write("a", memory.hold(content, 1000, 0, 8000, 1000))
    buffers = memory.cut(10_000)
    assert adapter.read_into("a", buffers) == 10_000
    assert bytes(buffers[0]) == content == door.get("a")
