"""Measure, print tables, say which aims are met. The copies of 8,192 tokens need 8 GiB of memory."""

from __future__ import annotations

import os

# Read by the client when it is imported.
os.environ["LMCACHE_TRACK_USAGE"] = "false"
os.environ["LMCACHE_DISABLE_BANNER"] = "1"
os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import servers
from tests.benchmarks.figures import Section, render
from tests.benchmarks.progress import say
from tests.interop.client import use_one_thread
from tests.support.shm import remove_segments_of

TOKENS = 8192
QUICK_TOKENS = 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"which of: {', '.join(_parts())} (all of them)")
    parser.add_argument(
        "--rounds", type=int, default=7, help="measured rounds of each figure; the median counts (%(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=TOKENS, help="length of the copied prompt (%(default)s)")
    parser.add_argument("--server", action="append", choices=servers.names(), help="measure this one only; repeatable")
    parser.add_argument(
        "--storage",
        action="append",
        choices=("filesystem", "mooncake", "s3", "valkey"),
        help="of the part storage; repeatable",
    )
    parser.add_argument("--quick", action="store_true", help="one round, a short prompt: does everything still run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the part scale there (needs matplotlib)")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(_parts()):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(_parts())}")
    if chosen.quick:
        chosen.rounds, chosen.tokens = 1, QUICK_TOKENS
    return chosen


def _parts() -> dict[str, Callable[[argparse.Namespace, list[str]], list[Section]]]:
    """Each part imports what it measures only when it runs."""

    def job(chosen: argparse.Namespace, _: list[str]) -> list[Section]:
        from tests.benchmarks.jobs import transfer_job, verified_job

        return [transfer_job(chosen.tokens, chosen.rounds), verified_job(chosen.tokens, chosen.rounds)]

    def copies(chosen: argparse.Namespace, wanted: list[str]) -> list[Section]:
        from tests.benchmarks.copies import end_to_end

        return end_to_end(chosen.tokens, chosen.rounds, wanted)

    def lookups(chosen: argparse.Namespace, wanted: list[str]) -> list[Section]:
        from tests.benchmarks.lookups import lookup_and_status

        return [lookup_and_status(chosen.rounds, wanted)]

    def processes(chosen: argparse.Namespace, wanted: list[str]) -> list[Section]:
        from tests.benchmarks.processes import start_and_idle

        return start_and_idle(min(chosen.rounds, 5), wanted)

    def http(chosen: argparse.Namespace, wanted: list[str]) -> list[Section]:
        from tests.benchmarks.http import http

        return http(min(chosen.rounds, 5), wanted)

    def scale(chosen: argparse.Namespace, _: list[str]) -> list[Section]:
        from tests.benchmarks.scale import scale

        return scale(chosen.rounds, chosen.plot)

    def storage(chosen: argparse.Namespace, _: list[str]) -> list[Section]:
        from tests.benchmarks.storage import MATCHES, storage

        return storage(min(chosen.rounds, 5), chosen.storage or list(MATCHES))

    return {
        "job": job,
        "copies": copies,
        "lookups": lookups,
        "processes": processes,
        "http": http,
        "scale": scale,
        "storage": storage,
    }


def _machine() -> dict[str, str | float]:
    return {
        "cpus": float(os.cpu_count() or 0),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "taken": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def main() -> int:
    """Measure what was asked for; the exit code says nothing about aims, which depend on the machine's other work."""
    chosen = _arguments()
    wanted = servers.names(chosen.server)
    use_one_thread()
    machine, sections = _machine(), []
    say(f"{machine['cpus']:.0f} CPUs, load {machine['load']:.1f}, servers: {', '.join(wanted)}")
    try:
        for name, part in _parts().items():
            if not chosen.parts or name in chosen.parts:
                for section in part(chosen, wanted):
                    print(render(section), flush=True)
                    sections.append(section)
    finally:
        remove_segments_of(os.getpid())
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine, "sections": [s.as_json() for s in sections]}, indent=2))
    print(_verdict(sections))
    return 0


def _verdict(sections: list[Section]) -> str:
    judged = [row for section in sections for row in section.rows if row.met is not None]
    missed = [row.name for row in judged if not row.met]
    return f"\n{len(judged) - len(missed)} of {len(judged)} aims met" + "".join(
        f"\n  missed: {name}" for name in missed
    )


if __name__ == "__main__":
    raise SystemExit(main())
