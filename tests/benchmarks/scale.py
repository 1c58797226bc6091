"""What a chunk costs in time and in memory, from a thousand to a million objects in L1, by eviction policy.

Each figure is taken in a process of its own: the memory of the others would show in it.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median

from engine.discovery import policy_maker, policy_names
from engine.keys import namespace
from engine.l1.cache import ALIGNMENT, L1Cache
from engine.l1.entry import Entry
from engine.l1.policies.ghosts import Ghosts
from tests.benchmarks.figures import Row, Section
from tests.benchmarks.progress import say

SIZES = (1_000, 10_000, 100_000, 1_000_000)
PROMPT = 32
"""Chunks of each prompt."""
BATCH = 200
"""Prompts between two looks at the clock."""
RATIO_AIM, BYTES_AIM, GHOST_AIM = 2.0, 400, 100


def scale(rounds: int, picture: Path | None) -> list[Section]:
    """Time and memory of every policy at every size, and as a picture if there is a place for it."""
    measured: dict[str, dict[int, dict[str, float]]] = {}
    for policy in policy_names():
        say(f"{policy}, {SIZES[0]:,} to {SIZES[-1]:,} objects")
        measured[policy] = {objects: _measured(policy, objects, rounds) for objects in SIZES}
    ghosts = json.loads(_output("ghosts"))["bytes"]
    if picture is not None:
        _draw(measured, picture)
    return [_times(measured), _memory(measured, ghosts)]


def _times(measured: dict[str, dict[int, dict[str, float]]]) -> Section:
    section = Section(
        f"Microseconds a chunk with {SIZES[-1]:,} objects; baseline: with {SIZES[0]:,}",
        notes=["a lookup: found, leased, released; a store evicts another chunk for each of its own"],
    )
    for policy, sizes in measured.items():
        for name in ("lookup", "store"):
            few, many = sizes[SIZES[0]][name], sizes[SIZES[-1]][name]
            row = Row(f"{policy}, {name}", "µs", many, baseline=few, to_baseline=many / few)
            row.aim, row.met = f"<= {RATIO_AIM:g} of baseline", many / few <= RATIO_AIM
            section.rows.append(row)
    return section


def _memory(measured: dict[str, dict[int, dict[str, float]]], ghosts: float) -> Section:
    section = Section(f"Memory of each of {SIZES[-1]:,} objects beyond its payload, and of each evicted one remembered")
    for policy, sizes in measured.items():
        row = Row(policy, "bytes", sizes[SIZES[-1]]["bytes"])
        row.aim_below(BYTES_AIM)
        section.rows.append(row)
    row = Row("an evicted one", "bytes", ghosts)
    row.aim_below(GHOST_AIM + 1)
    return Section(section.title, [*section.rows, row])


def _measured(policy: str, objects: int, rounds: int) -> dict[str, float]:
    found: dict[str, float] = json.loads(_output("cache", policy, str(objects), str(rounds)))
    return found


def _output(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.scale", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=900).stdout


def _draw(measured: dict[str, dict[int, dict[str, float]]], picture: Path) -> None:
    """One panel for each figure, one line for each policy."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    titles = {"lookup": "lookup, µs a chunk", "store": "store with eviction, µs a chunk", "bytes": "bytes an object"}
    figure, panels = pyplot.subplots(1, len(titles), figsize=(13, 4), layout="constrained")
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for policy, sizes in measured.items():
            panel.plot(list(sizes), [each[name] for each in sizes.values()], marker="o", label=policy)
        panel.set(title=title, xscale="log", xlabel="objects in L1")
        panel.set_ylim(bottom=0)
        panel.grid(visible=True, alpha=0.3)
    panels[0].legend()
    figure.savefig(picture, dpi=120)


# What the processes do


class _Traffic:
    """A full cache of `objects` objects, and prompts to be looked up and stored."""

    def __init__(self, policy: str, objects: int) -> None:
        self.cache = L1Cache(objects * ALIGNMENT, policy_maker(policy))
        self.space = namespace("model", 1, 0, bytes(16), "")
        self.random = Random(objects)
        self.stored = 0
        """Prompts so far."""
        self.prompts = objects // PROMPT
        """Prompts that fit."""

    def fill(self) -> None:
        for _ in range(self.prompts):
            self.store()

    def keys(self, prompt: int) -> list[bytes]:
        prefix = self.space.prefix + prompt.to_bytes(24, "big")
        return [prefix + chunk.to_bytes(8, "big") for chunk in range(PROMPT)]

    def store(self) -> None:
        """A prompt that is not there."""
        cache, parent, now = self.cache, None, float(self.stored)
        entries: list[Entry] = []
        for key in self.keys(self.stored):
            parent = cache.reserve(key, ALIGNMENT, self.space, now, parent)
            entries.append(parent)
        for entry in reversed(entries):
            cache.commit(entry)
        self.stored += 1

    def lookup(self) -> None:
        """A prompt that is most likely there."""
        cache = self.cache
        prompt = self.stored - 1 - self.random.randrange(self.prompts // 2)
        found = [entry for key in self.keys(prompt) if (entry := cache.find(key)) is not None]
        for entry in found:
            cache.lease(entry)
        found.reverse()
        cache.use(found, float(self.stored))
        for entry in found:
            cache.release(entry)


def _cache(policy: str, objects: int, rounds: int) -> dict[str, float]:
    traffic = _Traffic(policy, objects)
    gc.collect()
    before = _resident()
    traffic.fill()
    gc.collect()
    size = (_resident() - before) / objects
    # Until evictions are what a store has most often been met with, and the ghosts are all there.
    for _ in range(min(6 * traffic.prompts, 20_000)):
        traffic.store()
    times = {"lookup": _time(traffic.lookup, rounds), "store": _time(traffic.store, rounds)}
    return {**times, "bytes": size}


def _time(act: Callable[[], None], rounds: int) -> float:
    """Microseconds a chunk, the median of the rounds."""

    def once() -> float:
        start = time.perf_counter()
        for _ in range(BATCH):
            act()
        return (time.perf_counter() - start) / BATCH / PROMPT * 1e6

    return median(once() for _ in range(rounds))


def _ghosts() -> dict[str, float]:
    ghosts, count = Ghosts(), SIZES[-1]
    gc.collect()
    before = _resident()
    for number in range(count):
        ghosts.add(number.to_bytes(48, "big"), ALIGNMENT, number // 1000)
    gc.collect()
    return {"bytes": (_resident() - before) / count}


def _resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    kind, *given = sys.argv[1:]
    print(json.dumps(_ghosts() if kind == "ghosts" else _cache(given[0], int(given[1]), int(given[2]))))
