"""Huge pages behind L1: whether the kernel gives them for /dev/shm, and how many it gave.

Transparent ones only. Pages of hugetlbfs would need a mount of their own, and clients open the segment in /dev/shm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from engine.l1.preflight import readable
from engine.l1.rooms import SHM_FOLDER, text

_SETTINGS: Final = "sys/kernel/mm/transparent_hugepage"
_POLICY_FILE: Final = f"/{_SETTINGS}/shmem_enabled"
_USUAL_BYTES: Final = 2 << 20
_SECTION: Final = re.compile(r"^([0-9a-f]+)-[0-9a-f]+ ")
_HUGE: Final = re.compile(r"^(?:ShmemPmdMapped|FilePmdMapped): +(\d+) kB")


def obstacle(root: Path = Path("/")) -> str | None:
    """Why the kernel gives none for what is in /dev/shm, with the remedy; None if it may. `root` as of `rooms`."""
    return judged(_mount_option(text(root / "proc/self/mountinfo")), _chosen(text(root / _SETTINGS / "shmem_enabled")))


def judged(option: str | None, policy: str | None) -> str | None:
    """The same from the `huge=` with which /dev/shm is mounted, and the choice in shmem_enabled.

    NOTE: The choice itself is for memory without a mount. Mounts follow their option, unless it says deny or force.
    """
    if policy == "deny":
        return f"{_POLICY_FILE} says deny: write never, or anything else, into it"
    if policy == "force" or option in ("advise", "within_size", "always"):
        return None
    return (
        f"{SHM_FOLDER} is mounted {f'with huge={option}' if option else 'without huge='}: run mount -o "
        f"remount,huge=advise {SHM_FOLDER} on the machine, whose folder a container has to have too (docker run --ipc "
        f"host; Kubernetes: a hostPath)"
    )


def shortfall(given: int, possible: int, why: str | None) -> str | None:
    """What to say of `given` bytes in huge pages where `possible` could be; None if that is all."""
    if given >= possible:
        return None
    reason = why or "the kernel found no more of them in one piece: start sooner after the machine's start"
    return f"{readable(given)} of {readable(possible)} of L1 are in huge pages, since {reason}"


def page_bytes(root: Path = Path("/")) -> int:
    """The size of a huge page."""
    found = text(root / _SETTINGS / "hpage_pmd_size").strip()
    return int(found) if found.isdecimal() and int(found) else _USUAL_BYTES


def whole_pages(address: int, length: int, page: int) -> int:
    """Bytes of a range that whole huge pages can make up."""
    start, end = -(-address // page) * page, (address + length) // page * page
    return max(end - start, 0)


def mapped_huge(smaps: Iterable[str], address: int, length: int) -> int:
    """Bytes in huge pages of the mappings that begin in a range, from the lines of /proc/self/smaps."""
    is_ours, total = False, 0
    for line in smaps:
        if section := _SECTION.match(line):
            is_ours = address <= int(section[1], 16) < address + length
        elif is_ours and (found := _HUGE.match(line)):
            total += int(found[1]) << 10
    return total


def _mount_option(mountinfo: str) -> str | None:
    """Of the mount that lies on top, which is the last."""
    mounts = re.findall(rf"^\d+ \d+ \S+ \S+ {SHM_FOLDER} .*- tmpfs \S+ (\S+)$", mountinfo, re.MULTILINE)
    found = re.search(r"(?:^|,)huge=(\w+)", mounts[-1]) if mounts else None
    return found[1] if found else None


def _chosen(content: str) -> str | None:
    found = re.search(r"\[(\w+)\]", content)
    return found[1] if found else None
