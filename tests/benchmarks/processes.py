"""The server as a process: how soon it answers, and what it holds in memory while nobody asks it anything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.figures import Row, Section, median
from tests.benchmarks.progress import say
from tests.benchmarks.reference import ReferenceServer
from tests.benchmarks.servers import OURS, REFERENCE
from tests.support.polling import until
from tests.support.server import Server, ServerProcess, free_port

L1_GB = 1.0
ROOT_AIM = 0.7
READY_AIM = 3.0
MIB = 1 << 20
QUIET_SECONDS = 2.0

POOLED = "reference with a shared-memory pool"

Memory = dict[str, float]


@dataclass
class Starts:
    """What was seen of the starts of one server."""

    root: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    memory: Memory = field(default_factory=dict)


def start_and_idle(rounds: int, wanted: Sequence[str]) -> list[Section]:
    """Starts, in turn, as many times as there are rounds after one that fills the file cache; memory of the last."""
    seen = {name: Starts() for name in wanted}
    if REFERENCE in wanted:
        seen[POOLED] = Starts()
    for number in range(rounds + 1):
        for name, starts in seen.items():
            say(f"start {number} of {name}")
            root, ready, starts.memory = _one_start(_make(name), idle=number == rounds)
            if number:
                starts.root.append(root)
                starts.ready.append(ready)
    return [_times(seen), _memories(seen)]


def _make(name: str) -> ServerProcess:
    """The reference as it comes has no pool; ours always has one."""
    if name == OURS:
        server: ServerProcess = Server(l1_size_gb=L1_GB)
        server.port, server.http_port = free_port(), free_port()
        return server
    return ReferenceServer(l1_size_gb=L1_GB, pool=name == POOLED)


def _one_start(server: ServerProcess, *, idle: bool) -> tuple[float, float, Memory]:
    start = time.monotonic()
    server.spawn()
    try:
        root = server.seconds_to("/", start)
        ready = server.seconds_to(server.health_path, start)
        return root, ready, _settled(server) if idle else {}
    finally:
        server.stop()


def _times(seen: dict[str, Starts]) -> Section:
    root = _beside("/", "s", {name: median(starts.root) for name, starts in seen.items()})
    root.aim_below(ROOT_AIM)
    ready = _beside("healthcheck", "s", {name: median(starts.ready) for name, starts in seen.items()})
    ready.aim_below(READY_AIM)
    section = Section(f"From the start of the process to the first 200, {L1_GB:g} GiB of L1", [root, ready])
    if POOLED in seen:
        section.notes.append(f"{POOLED}: {median(seen[POOLED].ready):.2f} s to healthcheck")
    return section


def _memories(seen: dict[str, Starts]) -> Section:
    section = Section(f"Idle memory with {L1_GB:g} GiB of L1")
    for kind in next(iter(seen.values())).memory:
        section.rows.append(_beside(kind, "MiB", {name: starts.memory[kind] for name, starts in seen.items()}))
    section.notes.append("ours has all of L1 resident, in the segment that engines map")
    if POOLED in seen:
        section.notes.append(f"{POOLED}, of which nothing is resident yet: {seen[POOLED].memory['RSS']:.0f} MiB RSS")
    return section


def _beside(title: str, unit: str, values: dict[str, float]) -> Row:
    row = Row(title, unit, values.get(OURS), values.get(REFERENCE))
    if row.ours is not None and row.reference:
        row.to_reference = row.ours / row.reference
    return row


def _settled(server: ServerProcess) -> Memory:
    """The memory once it has not changed by a MiB for a while."""
    seen: list[tuple[float, float]] = []

    def still() -> Memory:
        now, memory = time.monotonic(), _memory(server.pid)
        total = memory["PSS"]
        if not seen or abs(seen[-1][1] - total) > 1:
            seen.append((now, total))
        return memory if now - seen[-1][0] > QUIET_SECONDS else {}

    return until(still, "memory that does not change", timeout=60)


def _memory(pid: int) -> Memory:
    """Of a process and its children. Shared memory is L1; a server that keeps L1 elsewhere shows none of it apart."""
    totals: Memory = {"RSS": 0.0, "PSS": 0.0, "shared memory": 0.0, "PSS without shared memory": 0.0}
    for process in _family(pid):
        rollup = _fields(Path(f"/proc/{process}/smaps_rollup"))
        status = _fields(Path(f"/proc/{process}/status"))
        totals["RSS"] += rollup["Rss"]
        totals["PSS"] += rollup["Pss"]
        totals["shared memory"] += status["RssShmem"]
        totals["PSS without shared memory"] += rollup["Pss"] - rollup["Pss_Shmem"]
    return {kind: kib * 1024 / MIB for kind, kib in totals.items()}


def _family(pid: int) -> list[int]:
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [pid, *(member for child in children for member in _family(child))]


def _fields(path: Path) -> dict[str, float]:
    """The lines of a /proc file that give a size in kB."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): float(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}
