"""The files of a recording: a new one when one is full, and the oldest deleted, so that there is a bound for all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"recording-(\d{8}-\d{6})-(\d+)\.jsonl")
_MODE: Final = 0o600


class TraceFiles:
    """Writes lines to `recording-YYYYMMDD-HHMMSS-N.jsonl`. Belongs to one thread.

    Guarantees: files hold complete lines only, also after an error; with the one being written there are never more
    than `max_files` of all recordings in the folder, nor more bytes than so many full ones have.
    """

    def __init__(self, folder: Path, began: datetime, max_file_size: int, max_files: int) -> None:
        """Makes the folder if it is not there, and the first file. Raises OSError."""
        self.max_file_size: Final = max_file_size
        self._folder = folder
        self._stamp = began.strftime("%Y%m%d-%H%M%S")
        self._max_files = max_files
        self._numbers = count(1)
        self._descriptor = -1
        self._size = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = self._open_next()
        """The file being written."""

    def write(self, line: bytes) -> None:
        """Appends a line of at most `max_file_size` bytes. Raises OSError; then the line is not there."""
        if self._size + len(line) > self.max_file_size:
            self.close()
            self.path = self._open_next()
        try:
            self._append(line)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line)

    def close(self) -> None:
        """A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _open_next(self) -> Path:
        self._make_room()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            path = self._folder / f"recording-{self._stamp}-{next(self._numbers)}.jsonl"
            try:
                self._descriptor, self._size = os.open(path, flags, _MODE), 0
            except FileExistsError:
                continue
            return path

    def _make_room(self) -> None:
        """For one more file."""
        files = list(_recordings(self._folder))
        sizes = [path.stat().st_size for path in files]
        while files and (len(files) >= self._max_files or sum(sizes) > (self._max_files - 1) * self.max_file_size):
            files.pop(0).unlink(missing_ok=True)
            sizes.pop(0)


def _recordings(folder: Path) -> Iterator[Path]:
    """What recordings have left in a folder, the oldest first."""
    found = [(match[1], int(match[2]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return (path for _, _, path in sorted(found))
