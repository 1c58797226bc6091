"""No deadline depends on the wall clock: where the engine looks at it, that is named here with its reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ENGINE = Path(__file__).resolve().parents[3] / "engine"

WALL_CLOCK = re.compile(
    r"\btime\.(?:time|time_ns|localtime|gmtime|ctime|asctime|strftime)\b"
    r"|\bfrom time import\b.*"
    r"|\b(?:datetime|date)\.(?:now|utcnow|today|fromtimestamp)\b"
    r"|\bCLOCK_(?:REALTIME\w*|TAI)\b"
    r"|\b(?:os|path)\.utime\b|\bst_[acm]time(?:_ns)?\b|\bget[acm]time\b"
)

ALLOWED = {
    ("l2/filesystem_l2.py", "time.time"): "the age of a stamp, which only says whether the next use renews it: after a "
    "step of the clock all stamps look old, and are renewed once",
    ("l2/filesystem_l2.py", "os.utime"): "the stamp orders what is evicted, over all servers and restarts, which no "
    "monotonic clock can; after a step back the order is wrong for that long, and nothing else",
    ("l2/filesystem_l2.py", "st_mtime"): "the same stamp",
    ("l2/filesystem_l2.py", "st_mtime_ns"): "the same stamp, only asked whether it is still what it was",
    ("l2/folder.py", "st_mtime_ns"): "the same stamp",
    ("l2/s3_l2.py", "datetime.now"): "the client of S3 wants the time to read its credentials again as a wall time; it "
    "signs with that clock, and a server refuses what is signed with a wrong one",
    ("recording/recorder.py", "datetime.now"): "for display: the name of a file",
}


def found() -> set[tuple[str, str]]:
    return {
        (str(path.relative_to(ENGINE)), hit)
        for path in ENGINE.rglob("*.py")
        for line in path.read_text().splitlines()
        for hit in WALL_CLOCK.findall(line)
    }


def test_the_engine_looks_at_the_wall_clock_only_where_it_does_no_harm() -> None:
    assert found() - ALLOWED.keys() == set()


def test_every_exception_is_still_one() -> None:
    assert ALLOWED.keys() - found() == set()


@pytest.mark.parametrize(
    "line",
    [
        "x = time.time()",
        "from time import time",
        "time.time_ns()",
        "datetime.now(UTC)",
        "date.today()",
        "clock_gettime(CLOCK_REALTIME)",
        "os.utime(path)",
        "status.st_ctime",
        "os.path.getmtime(path)",
    ],
)
def test_the_pattern_finds_what_it_is_for(line: str) -> None:
    assert WALL_CLOCK.search(line)


@pytest.mark.parametrize("line", ["time.monotonic()", "time.thread_time()", "datetime.strptime(x, y)", "st_size"])
def test_the_pattern_lets_the_other_clocks_be(line: str) -> None:
    assert not WALL_CLOCK.search(line)
