"""The long run: `tox -e fuzz`, or `python -m tests.fuzz [--seconds 600] [--messages 200000] [--keep]`.

First the live server under its flood, then every target under atheris for an equal part of the time that is left. It
ends with 1 if anything was found; inputs that broke a promise are left in a folder whose name is printed. `--keep` adds
to the corpus in the tree what reaches code that no input in it does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.fuzz.corpus import CORPUS, write_first
from tests.fuzz.targets import TARGETS

_LEAST_SECONDS: Final = 5.0
_LONGEST_INPUT: Final = 4096
_SLOWEST_INPUT: Final = 20
"""Seconds after which an input is taken for one that the target never comes back from."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="for all of it")
    parser.add_argument("--messages", type=int, default=200_000, help="to the live server; 0 leaves it out")
    parser.add_argument("--target", choices=TARGETS, action="append", help="instead of all; may be repeated")
    parser.add_argument("--keep", action="store_true", help="add what was found to the corpus in the tree")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    findings = Path(tempfile.mkdtemp(prefix="kvkeep-fuzz-"))
    names = options.target or list(TARGETS)
    failed = [] if not options.messages or _flood(options.messages) else ["live server"]
    for index, name in enumerate(names):
        left = options.seconds - (time.monotonic() - began)
        seconds = max(_LEAST_SECONDS, left / (len(names) - index))
        if not _fuzz(name, seconds, findings, keep=options.keep):
            failed.append(name)
    took = time.monotonic() - began
    if failed:
        print(f"{took:.0f} s: a promise was broken by {', '.join(failed)}; inputs: {findings}", flush=True)
        return 1
    shutil.rmtree(findings)
    print(f"{took:.0f} s, and no promise was broken", flush=True)
    return 0


def _flood(messages: int) -> bool:
    environment = {**os.environ, "KVKEEP_FUZZ_MESSAGES": str(messages)}
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name("test_live_server.py"))]
    return subprocess.run(command, env=environment, check=False).returncode == 0


def _fuzz(name: str, seconds: float, findings: Path, *, keep: bool) -> bool:
    """One target for so long. The corpus in the tree is only read."""
    print(f"== {name}: {seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as made:
        first, found = Path(made) / "first", Path(made) / "found"
        write_first(first)
        found.mkdir()
        folders = [found, CORPUS / name, first / name]
        flags = [
            f"-max_total_time={seconds:.0f}",
            f"-max_len={_LONGEST_INPUT}",
            f"-timeout={_SLOWEST_INPUT}",
            f"-artifact_prefix={findings}/{name}-",
            "-reload=0",
        ]
        passed = _harness(name, flags, folders)
        if passed and keep:
            _harness(name, ["-merge=1", f"-max_len={_LONGEST_INPUT}"], [CORPUS / name, found])
    return passed


def _harness(name: str, flags: list[str], folders: list[Path]) -> bool:
    """Shows what it prints when it begins, now and then, at the end, and all of it where something was found."""
    command = [sys.executable, "-m", "tests.fuzz.harness", name, *flags, *map(str, folders)]
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            lines.append(line)
            if any(word in line for word in ("INITED", "pulse", "DONE", "Done", "MERGE")):
                print(line, end="", flush=True)
    if run.returncode:
        print("".join(lines[-60:]), flush=True)
    return run.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
