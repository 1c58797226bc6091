"""The shared-memory segments of a process, found by the process id in their names."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path("/dev/shm")


def segments_of(pid: int) -> list[Path]:
    """Segments whose name carries ``pid`` as a number of its own."""
    own = re.compile(rf"(?<!\d){pid}(?!\d)")
    return sorted(path for path in FOLDER.iterdir() if own.search(path.name)) if FOLDER.is_dir() else []


def remove_segments_of(pid: int) -> None:
    """Unlink what a killed process could not; live mappings stay valid."""
    for path in segments_of(pid):
        path.unlink(missing_ok=True)
