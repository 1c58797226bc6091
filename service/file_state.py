"""What a file looks like from outside, to tell whether it has changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileState:
    """One look at a file. A mounted ConfigMap changes by a symbolic link, so the resolved path is a part of it."""

    path: str
    inode: int
    size: int
    modified: int
    """Nanoseconds since the epoch."""


def file_state(file: str | None) -> FileState | None:
    """The file as it is now; None if it cannot be looked at, or there is no file."""
    if file is None:
        return None
    try:
        # NOTE: Not Path.resolve, which raises errors of other kinds where links go in a circle.
        path = os.path.realpath(file)
        found = Path(path).stat()
    except OSError:
        return None
    return FileState(path, found.st_ino, found.st_size, found.st_mtime_ns)


class Settling:
    """Tells a file that has changed and come to rest from one that somebody still writes."""

    def __init__(self, first: FileState | None) -> None:
        self._last = first

    def look(self, state: FileState | None, known: FileState | None) -> bool:
        """Whether two looks in a row agree, on something else than what is known."""
        is_settled = state == self._last and state != known
        self._last = state
        return is_settled
