"""Whether the kernel gives huge pages and how many it gave, from the files of kernels as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.l1.huge_pages import judged, mapped_huge, obstacle, page_bytes, shortfall, whole_pages

MIB = 1 << 20
PAGE = 2 * MIB


def kernel(root: Path, options: str, policy: str | None) -> Path:
    mount = f"25 24 0:23 / /dev/shm rw,relatime shared:4 - tmpfs tmpfs {options}\n"
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(f"24 1 0:5 / /dev rw - devtmpfs dev rw\n{mount}")
    settings = root / "sys/kernel/mm/transparent_hugepage"
    settings.mkdir(parents=True)
    if policy is not None:
        (settings / "shmem_enabled").write_text(f"{policy}\n")
    return root


class TestObstacle:
    @pytest.mark.parametrize("option", ["advise", "within_size", "always"])
    @pytest.mark.parametrize("policy", ["never", "advise", None])
    def test_the_option_of_the_mount_decides(self, tmp_path: Path, option: str, policy: str | None) -> None:
        policy = policy and f"always within_size advise deny force [{policy}]"
        assert obstacle(kernel(tmp_path, f"rw,size=4096k,huge={option},inode64", policy)) is None

    @pytest.mark.parametrize("policy", ["never", "advise", "always"])
    def test_without_it_the_choice_for_other_memory_does_not_help(self, tmp_path: Path, policy: str) -> None:
        found = obstacle(kernel(tmp_path, "rw,size=4096k", f"[{policy}] deny force"))
        assert found is not None
        assert "/dev/shm is mounted without huge=: run mount -o remount,huge=advise /dev/shm" in found

    def test_a_mount_that_says_never_is_told(self) -> None:
        assert "/dev/shm is mounted with huge=never: run mount -o remount," in str(judged("never", "never"))

    def test_the_choice_wins_where_it_says_deny_or_force(self) -> None:
        denied = judged("always", "deny")
        assert (
            denied
            == "/sys/kernel/mm/transparent_hugepage/shmem_enabled says deny: write never, or anything else, into it"
        )
        assert judged(None, "force") is None

    def test_the_mount_on_top_decides(self, tmp_path: Path) -> None:
        kernel(tmp_path, "rw,huge=always", None)
        with (tmp_path / "proc/self/mountinfo").open("a") as file:
            file.write("63 25 0:39 / /dev/shm rw - tmpfs tmpfs rw,size=1k\n")
        assert obstacle(tmp_path) is not None

    def test_an_empty_tree_is_no_crash(self, tmp_path: Path) -> None:
        assert obstacle(tmp_path) is not None


@pytest.mark.parametrize(("content", "size"), [("4194304\n", 4 * MIB), ("", PAGE), ("0", PAGE), ("large", PAGE)])
def test_the_size_of_a_huge_page_is_the_kernels(tmp_path: Path, content: str, size: int) -> None:
    (tmp_path / "sys/kernel/mm/transparent_hugepage").mkdir(parents=True)
    (tmp_path / "sys/kernel/mm/transparent_hugepage/hpage_pmd_size").write_text(content)
    assert page_bytes(tmp_path) == size
    assert page_bytes(tmp_path / "nowhere") == PAGE


@pytest.mark.parametrize(
    ("address", "length", "whole"),
    [(0, 4 * MIB, 4 * MIB), (MIB, 4 * MIB, PAGE), (MIB, PAGE, 0), (0, PAGE - 1, 0), (PAGE - 1, PAGE + 1, PAGE)],
)
def test_only_whole_pages_can_be_huge(address: int, length: int, whole: int) -> None:
    assert whole_pages(address, length, PAGE) == whole


SMAPS = """\
7f0000000000-7f0000400000 rw-s 00000000 00:17 2 /dev/shm/kvkeep_arena_1_ab
Size:               4096 kB
Rss:                4096 kB
ShmemPmdMapped:     2048 kB
FilePmdMapped:      2048 kB
VmFlags: rd wr sh hg
7f0000400000-7f0000800000 rw-s 00400000 00:17 2 /dev/shm/kvkeep_arena_1_ab
ShmemPmdMapped:        0 kB
FilePmdMapped:      2048 kB
7f0000800000-7f0000c00000 rw-p 00000000 00:00 0
ShmemPmdMapped:     4096 kB
"""


def test_the_huge_pages_of_a_mapping_are_counted_in_all_its_parts() -> None:
    lines = SMAPS.splitlines(keepends=True)
    assert mapped_huge(lines, 0x7F0000000000, 8 * MIB) == 6 * MIB
    assert mapped_huge(lines, 0x7F0000400000, 4 * MIB) == 2 * MIB
    assert mapped_huge(lines, 0x7E0000000000, 8 * MIB) == 0


def test_what_is_missing_is_told_with_its_reason() -> None:
    assert shortfall(4 * MIB, 4 * MIB, "whatever") is None
    assert shortfall(0, 4 * MIB, "it is off") == "0 MiB of 4 MiB of L1 are in huge pages, since it is off"
    found = shortfall(2 * MIB, 4 * MIB, None)
    assert found is not None
    assert found.startswith(
        "2 MiB of 4 MiB of L1 are in huge pages, since the kernel found no more of them in one piece"
    )
