"""The files of a recording: whole lines, bounded, and nobody else's business."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.recording.files import TraceFiles

BEGAN = datetime(2025, 3, 1, 12, 0, 0, tzinfo=UTC)
LINE = b"x" * 99 + b"\n"

Make = Callable[..., TraceFiles]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(began: datetime = BEGAN, size: int = 1000, files: int = 3) -> TraceFiles:
        return TraceFiles(tmp_path, began, size, files)

    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_the_owner_reads_them(make: Make, tmp_path: Path) -> None:
    files = make()
    files.close()
    assert files.path == tmp_path / "recording-20250301-120000-1.jsonl"
    assert files.path.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    TraceFiles(tmp_path / "a" / "b", BEGAN, 1000, 3).close()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_full_file_is_followed_by_another(make: Make, tmp_path: Path) -> None:
    files = make()
    for _ in range(11):
        files.write(LINE)
    files.close()
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert sizes == [1000, 100]
    assert files.path.name.endswith("-2.jsonl")


def test_the_oldest_go_and_the_bound_is_never_passed(make: Make, tmp_path: Path) -> None:
    files, most = make(), 0
    for _ in range(125):
        files.write(LINE)
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
    files.close()
    assert most == 3000
    assert names(tmp_path) == [f"recording-20250301-120000-{number}.jsonl" for number in (11, 12, 13)]


def test_former_recordings_count_and_other_files_are_left_alone(make: Make, tmp_path: Path) -> None:
    others = ["notes.txt", "recording-x.jsonl", "recording-20250301-120000-1.jsonl.bak"]
    for name in others:
        (tmp_path / name).write_bytes(LINE * 50)
    for number in (2, 10):
        (tmp_path / f"recording-20240301-120000-{number}.jsonl").write_bytes(LINE)
    make().close()
    assert len(names(tmp_path)) == 6
    make(datetime(2025, 3, 2, tzinfo=UTC)).close()
    left = [
        "recording-20240301-120000-10.jsonl",
        "recording-20250301-120000-1.jsonl",
        "recording-20250302-000000-1.jsonl",
    ]
    assert names(tmp_path) == sorted([*others, *left])


def test_larger_files_of_a_former_setting_do_not_pass_the_bound(make: Make, tmp_path: Path) -> None:
    (tmp_path / "recording-20240301-120000-1.jsonl").write_bytes(LINE * 21)
    make().close()
    assert names(tmp_path) == ["recording-20250301-120000-1.jsonl"]


def test_two_recordings_of_one_second_do_not_meet(make: Make) -> None:
    one, two = make(), make()
    one.write(b"one\n")
    two.write(b"two\n")
    assert (one.path.read_bytes(), two.path.read_bytes()) == (b"one\n", b"two\n")
    one.close()
    two.close()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        TraceFiles(tmp_path / "file" / "below", BEGAN, 1000, 3)


_FULL_DISK = """
import resource, sys
from datetime import UTC, datetime
from pathlib import Path
from engine.recording.files import TraceFiles
resource.setrlimit(resource.RLIMIT_FSIZE, (250, 250))
files = TraceFiles(Path(sys.argv[1]), datetime.now(UTC), 1000, 3)
files.write(b"a" * 99 + b"\\n")
files.write(b"b" * 99 + b"\\n")
try:
    files.write(b"c" * 99 + b"\\n")
except OSError as error:
    print(error.strerror)
files.close()
"""


def test_a_line_that_did_not_fit_on_the_disk_is_not_there_in_part(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == os.strerror(27)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 250
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b"a" * 99 + b"\n" + b"b" * 99 + b"\n"
