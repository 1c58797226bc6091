"""What L1 has to fit into on this machine, read from the kernel. What cannot be read or is odd sets no limit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from engine.l1.preflight import Room

SHM_FOLDER: Final = "/dev/shm"
_UNLIMITED: Final = 1 << 60
"""Version 1 writes no limit as the largest number of pages that there can be."""

_GROUP: Final = re.compile(r"^\d+:([^:\n]*):(/.*)$", re.MULTILINE)
"""A line of /proc/self/cgroup: controllers, path."""
_MOUNT: Final = re.compile(r"^\d+ \d+ \S+ (\S+) (\S+) .*- (cgroup2?) \S+ (\S+)$", re.MULTILINE)
"""A line of /proc/self/mountinfo: root, mount point, type, options."""


@dataclass(frozen=True, slots=True)
class _Files:
    """How a version of control groups names things."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: re.Pattern[str]
    """Lines of memory.stat with what the kernel gives back when it has to. Shared memory is in none of them."""


_VERSIONS: Final = {
    # Whoever is above memory.high is slowed down to a crawl, and L1 cannot be reclaimed.
    "cgroup2": _Files(
        ("memory.max", "memory.high"),
        "memory.current",
        re.compile(r"^(?:active_file|inactive_file|slab_reclaimable) (\d+)$", re.MULTILINE),
    ),
    "cgroup": _Files(
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        re.compile(r"^(?:total_active_file|total_inactive_file) (\d+)$", re.MULTILINE),
    ),
}


def rooms(root: Path = Path("/")) -> list[Room]:
    """Everything that bounds L1. `root` is the folder in which /dev, /proc and /sys lie."""
    return [*_shared_memory(root), *_limits(root), *_machine(root)]


def text(path: Path) -> str:
    """The content of a file of the kernel, empty if it cannot be had."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _shared_memory(root: Path) -> Iterator[Room]:
    try:
        found = os.statvfs(root / SHM_FOLDER[1:])
    except OSError:
        return
    # NOTE: A tmpfs mounted with size=0 has no limit of its own and says that it has no blocks.
    if found.f_blocks:
        yield Room("shm", SHM_FOLDER, found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def _machine(root: Path) -> Iterator[Room]:
    content = text(root / "proc/meminfo")
    found = [re.search(rf"^{name}: +(\d+) kB$", content, re.MULTILINE) for name in ("MemTotal", "MemAvailable")]
    if found[0] and found[1]:
        yield Room("machine", "the machine's memory (MemAvailable)", int(found[0][1]) << 10, int(found[1][1]) << 10)


def _limits(root: Path) -> Iterator[Room]:
    for folder, files in _groups(root):
        used = _number(folder / files.usage)
        if used is None:
            continue
        reclaimable = sum(int(each) for each in files.reclaimable.findall(text(folder / "memory.stat")))
        for name in files.limits:
            limit = _number(folder / name)
            if limit is not None and limit < _UNLIMITED:
                shown = "/" / (folder / name).relative_to(root)
                yield Room("limit", str(shown), limit, max(limit - max(used - reclaimable, 0), 0))


def _groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    """The control groups of this process that count memory, each with its way up as far as it can be seen."""
    paths = {}
    for controllers, path in _GROUP.findall(text(root / "proc/self/cgroup")):
        if not controllers or "memory" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = PurePosixPath(path)
    for top, point, kind, options in _MOUNT.findall(text(root / "proc/self/mountinfo")):
        if kind in paths and (kind == "cgroup2" or "memory" in options.split(",")):
            for folder in _way_up(root / point[1:], _inner(paths[kind], PurePosixPath(top))):
                yield folder, _VERSIONS[kind]


def _inner(path: PurePosixPath, top: PurePosixPath) -> PurePosixPath:
    """Where a group lies below the mount. One that is not below it is seen as the mount's root by who is in it."""
    if ".." in path.parts or not path.is_relative_to(top):
        return PurePosixPath()
    return path.relative_to(top)


def _way_up(mount: Path, inner: PurePosixPath) -> Iterator[Path]:
    yield mount / inner
    for parent in inner.parents:
        yield mount / parent


def _number(path: Path) -> int | None:
    content = text(path).strip()
    return int(content) if content.isascii() and content.isdecimal() else None
