"""What bounds L1, read from trees of files as kernels and container runtimes show them, and from odd ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.l1.preflight import GIB, MIB, Room
from engine.l1.rooms import rooms

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup ro,nosuid,relatime - cgroup2 cgroup rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
MEMINFO = "MemTotal:       8388608 kB\nMemFree:         100 kB\nMemAvailable:    4194304 kB\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine without any bound."""
    return tmp_path


def write(root: Path, **files: str) -> None:
    """Files by their paths, with `__` for the slash."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def group(root: Path, folder: str, **files: str | int) -> None:
    """The files of a control group, with `_` for the first dot."""
    for name, content in files.items():
        path = root / folder / name.replace("_", ".", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def limits(root: Path) -> list[tuple[str, int, int]]:
    return [(room.name, room.total, room.free) for room in rooms(root) if room.kind == "limit"]


def test_a_tree_without_anything_has_no_bound(root: Path) -> None:
    assert rooms(root) == []


def test_the_real_machine_can_be_read() -> None:
    kinds = [room.kind for room in rooms()]
    assert kinds[0] == "shm"
    assert kinds[-1] == "machine"
    assert all(0 <= room.free <= room.total for room in rooms())


class TestSharedMemory:
    def test_it_is_what_the_file_system_says(self, root: Path) -> None:
        (root / "dev/shm").mkdir(parents=True)
        found = os.statvfs(root)
        [room] = rooms(root)
        assert (room.kind, room.name, room.total) == ("shm", "/dev/shm", found.f_blocks * found.f_frsize)
        assert 0 <= room.free <= room.total

    def test_a_file_system_without_a_limit_sets_none(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (root / "dev/shm").mkdir(parents=True)
        unlimited = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda path: unlimited)
        assert rooms(root) == []


class TestMachine:
    def test_what_is_available_counts(self, root: Path) -> None:
        write(root, proc__meminfo=MEMINFO)
        assert rooms(root) == [Room("machine", "the machine's memory (MemAvailable)", 8 * GIB, 4 * GIB)]

    @pytest.mark.parametrize("content", ["", "MemTotal: 1 kB\n", "MemTotal: x kB\nMemAvailable: 5 kB\n", "\0\xff"])
    def test_what_is_odd_sets_no_bound(self, root: Path, content: str) -> None:
        write(root, proc__meminfo=content)
        assert rooms(root) == []


class TestVersion2:
    @pytest.fixture(autouse=True)
    def _mounted(self, root: Path) -> None:
        write(root, proc__self__mountinfo=V2_MOUNT, proc__self__cgroup="0::/\n")

    def test_a_container_in_its_own_namespace(self, root: Path) -> None:
        group(root, "sys/fs/cgroup", memory_max=4 * GIB, memory_current=GIB)
        assert limits(root) == [("/sys/fs/cgroup/memory.max", 4 * GIB, 3 * GIB)]

    def test_no_limit_is_none(self, root: Path) -> None:
        group(root, "sys/fs/cgroup", memory_max="max", memory_high="max", memory_current=GIB)
        assert limits(root) == []

    def test_every_group_on_the_way_up_is_seen(self, root: Path) -> None:
        write(root, proc__self__cgroup="0::/kvkeep.slice/kvkeep.service\n")
        top = "sys/fs/cgroup"
        group(root, top, memory_stat="")
        group(root, f"{top}/kvkeep.slice", memory_max=8 * GIB, memory_current=2 * GIB)
        group(root, f"{top}/kvkeep.slice/kvkeep.service", memory_max=4 * GIB, memory_high=3 * GIB, memory_current=0)
        assert limits(root) == [
            ("/sys/fs/cgroup/kvkeep.slice/kvkeep.service/memory.max", 4 * GIB, 4 * GIB),
            ("/sys/fs/cgroup/kvkeep.slice/kvkeep.service/memory.high", 3 * GIB, 3 * GIB),
            ("/sys/fs/cgroup/kvkeep.slice/memory.max", 8 * GIB, 6 * GIB),
        ]

    def test_what_the_kernel_gives_back_when_it_has_to_is_free(self, root: Path) -> None:
        stat = f"anon 7\nfile 9\nshmem 9\ninactive_file {300 * MIB}\nactive_file {200 * MIB}\nslab_reclaimable {MIB}"
        group(root, "sys/fs/cgroup", memory_max=4 * GIB, memory_current=GIB, memory_stat=stat)
        assert limits(root) == [("/sys/fs/cgroup/memory.max", 4 * GIB, 3 * GIB + 501 * MIB)]

    def test_more_use_than_limit_leaves_nothing(self, root: Path) -> None:
        group(root, "sys/fs/cgroup", memory_max=GIB, memory_current=2 * GIB)
        assert limits(root) == [("/sys/fs/cgroup/memory.max", GIB, 0)]

    def test_a_group_that_is_not_below_the_mount_is_its_root(self, root: Path) -> None:
        group(root, "sys/fs/cgroup", memory_max=GIB, memory_current=0)
        for path in ("/../../elsewhere", "/kubepods/pod1/container"):
            mount = V2_MOUNT.replace(" / /sys", " /docker/abc /sys")
            write(root, proc__self__cgroup=f"0::{path}\n", proc__self__mountinfo=mount)
            assert limits(root) == [("/sys/fs/cgroup/memory.max", GIB, GIB)]

    @pytest.mark.parametrize("limit", ["", "-1", "1.5", "many", "²", "0x10"])
    def test_an_odd_limit_is_none(self, root: Path, limit: str) -> None:
        group(root, "sys/fs/cgroup", memory_max=limit, memory_current=0)
        assert limits(root) == []

    def test_a_limit_without_its_use_is_none(self, root: Path) -> None:
        group(root, "sys/fs/cgroup", memory_max=GIB)
        assert limits(root) == []

    @pytest.mark.parametrize("content", ["", "nonsense", "0:/\n", "0::relative\n", "\0\0", ":::\n"])
    def test_odd_lists_of_groups_set_no_limit(self, root: Path, content: str) -> None:
        group(root, "sys/fs/cgroup", memory_max=GIB, memory_current=0)
        write(root, proc__self__cgroup=content)
        assert limits(root) == []

    @pytest.mark.parametrize("content", ["", "nonsense - cgroup2", "1 2 3 4 5 6 7\n", "\0"])
    def test_odd_lists_of_mounts_set_no_limit(self, root: Path, content: str) -> None:
        group(root, "sys/fs/cgroup", memory_max=GIB, memory_current=0)
        write(root, proc__self__mountinfo=content)
        assert limits(root) == []

    def test_a_folder_in_place_of_a_file_is_none(self, root: Path) -> None:
        (root / "sys/fs/cgroup/memory.max").mkdir(parents=True)
        group(root, "sys/fs/cgroup", memory_current=0)
        assert limits(root) == []


class TestVersion1:
    FOLDER = "sys/fs/cgroup/memory"
    NAME = "/sys/fs/cgroup/memory"

    def test_a_container_that_sees_its_path_on_the_host(self, root: Path) -> None:
        groups = "11:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n"
        write(root, proc__self__mountinfo=V1_MOUNT.format(root="/docker/abc"), proc__self__cgroup=groups)
        stat = f"inactive_file 1\ntotal_inactive_file {MIB}\ntotal_active_file {MIB}"
        used = {"memory_usage_in_bytes": GIB, "memory_stat": stat}
        group(root, self.FOLDER, memory_limit_in_bytes=2 * GIB, **used)
        assert limits(root) == [(f"{self.NAME}/memory.limit_in_bytes", 2 * GIB, GIB + 2 * MIB)]

    def test_the_way_up_is_seen_and_no_limit_is_none(self, root: Path) -> None:
        write(root, proc__self__mountinfo=V1_MOUNT.format(root="/"), proc__self__cgroup="4:memory:/a/b\n")
        for folder, limit in ((self.FOLDER, 9223372036854771712), (f"{self.FOLDER}/a", 2 * GIB)):
            group(root, folder, memory_limit_in_bytes=limit, memory_usage_in_bytes=0)
        group(root, f"{self.FOLDER}/a/b", memory_limit_in_bytes=3 * GIB, memory_usage_in_bytes=0)
        assert limits(root) == [
            (f"{self.NAME}/a/b/memory.limit_in_bytes", 3 * GIB, 3 * GIB),
            (f"{self.NAME}/a/memory.limit_in_bytes", 2 * GIB, 2 * GIB),
        ]

    def test_both_versions_at_once(self, root: Path) -> None:
        """Memory is counted by the first, the second is mounted and knows nothing of it."""
        unified = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        other = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        mounts = unified + other + V1_MOUNT.format(root="/")
        write(root, proc__self__mountinfo=mounts, proc__self__cgroup="4:memory:/\n1:cpu:/\n0::/\n")
        (root / "sys/fs/cgroup/unified").mkdir(parents=True)
        group(root, self.FOLDER, memory_limit_in_bytes=GIB, memory_usage_in_bytes=0)
        assert limits(root) == [(f"{self.NAME}/memory.limit_in_bytes", GIB, GIB)]
