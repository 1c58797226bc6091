"""What a folder of objects holds, counted by all servers that use it together, in a small file of the folder.

The file has an entry for each shard, and is locked (flock) by whoever reads or changes it, for microseconds. An entry
is marked as unknown before anything is done to the files of its shard, and written again afterwards. So it is known
exactly when it is right: if a server is killed in between, or its call fails, the next one to lock the account finds
the entry unknown and counts that shard. Nothing else can be left wrong, whoever else lives on.

What is being written is part of the account, by the names of the temporary files. Of those that a killed server has
left, the next count of their shard finds that nobody locks them.

The file is an array of 64-bit numbers: four for the magic number, and four for each shard (objects, their bytes,
reserved bytes, 0; or all bits set if it is unknown). An entry never crosses a page, so that it is written as a whole
or not at all.
"""

from __future__ import annotations

import fcntl
import os
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Final

from engine.l2.base import UnavailableError
from engine.l2.folder import SHARDS, Count, Folder, make_folder

_NUMBERS: Final = 4
"""Of each entry."""
_ENTRY_BYTES: Final = 8 * _NUMBERS
_FILE_BYTES: Final = _ENTRY_BYTES * (1 + SHARDS)
_MAGIC: Final = b"kvkeep folder account, version 1"
_UNKNOWN: Final = b"\xff" * _ENTRY_BYTES
_SHORTEST_PAUSE: Final = 0.0001
_LONGEST_PAUSE: Final = 0.001


class Ledger:
    """The account while it is locked: what is in the folder, and how to change it."""

    def __init__(self, descriptor: int, before: Ledger | None = None) -> None:
        """`before` is the one that the same process has had last: what has not changed is not added up again."""
        self._descriptor = descriptor
        content = _read(descriptor)
        self._numbers = array("Q", content)
        # PERF: Found among all bytes faster than by going through the entries.
        self.has_unknown: Final = _UNKNOWN in content
        self._total: Count | None = before._total if before and before._numbers == self._numbers else None
        """None as long as nobody asked."""

    @property
    def total(self) -> Count:
        """What is in all shards, none of which may be unknown."""
        if self._total is None:
            objects, occupied, reserved = (sum(self._numbers[_NUMBERS + place :: _NUMBERS]) for place in range(3))
            self._total = Count(objects, occupied, reserved)
        return self._total

    def unknown_shards(self) -> list[int]:
        return [shard for shard in range(SHARDS) if self._entry(shard).tobytes() == _UNKNOWN]

    def writing_shards(self) -> list[int]:
        """Where something is being written, or was by a server that was killed."""
        return [shard for shard, reserved in enumerate(self._numbers[_NUMBERS + 2 :: _NUMBERS]) if reserved]

    @contextmanager
    def changing(self, shard: int) -> Iterator[Count]:
        """Around a change of the shard's files, which changes the count in the same way.

        NOTE: What fails inside may have happened or not: the shard stays unknown, and is counted by the next.
        """
        total, before = self.total, self._entry(shard)
        count = Count(*before[:3])
        self._put(shard, _UNKNOWN)
        yield count
        self.put(shard, count)
        self._total = Count(
            total.objects + count.objects - before[0],
            total.bytes + count.bytes - before[1],
            total.reserved + count.reserved - before[2],
        )

    def put(self, shard: int, count: Count) -> None:
        """NOTE: Files that came from elsewhere, such as a restored backup, were never counted, and may now be taken
        away from the count. It is unknown then."""
        numbers = (count.objects, count.bytes, count.reserved, 0)
        self._put(shard, array("Q", numbers).tobytes() if min(numbers) >= 0 else _UNKNOWN)

    def _entry(self, shard: int) -> array[int]:
        return self._numbers[_NUMBERS * (1 + shard) : _NUMBERS * (2 + shard)]

    def _put(self, shard: int, entry: bytes) -> None:
        self._total = None
        self._numbers[_NUMBERS * (1 + shard) : _NUMBERS * (2 + shard)] = array("Q", entry)
        os.pwrite(self._descriptor, entry, _ENTRY_BYTES * (1 + shard))


class Account:
    """Of one folder. Keeps no file open, so that a folder that is removed and comes back has its own account at once.

    All methods may be called from any thread, and end by their deadlines, which are times of `time.monotonic`. They
    raise OSError, and UnavailableError when the deadline passes.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._turn = Lock()
        """PERF: Threads of one process need not poll for each other."""
        self._last: Ledger | None = None
        """Of whoever has the turn."""

    @contextmanager
    def locked(self, deadline: float) -> Iterator[Ledger]:
        """The account, complete and right, which nobody else reads or changes meanwhile."""
        with self._locked(deadline) as ledger:
            if ledger.has_unknown:
                self._complete(ledger, deadline)
            yield ledger

    def recount(self, shard: int, deadline: float) -> None:
        """Counts a shard again, which corrects what was done to its files behind the account."""
        with self._locked(deadline) as ledger:
            ledger.put(shard, self._folder.count(shard))

    def _complete(self, ledger: Ledger, deadline: float) -> None:
        """NOTE: What is counted when the deadline passes stays known, for the next."""
        for shard in ledger.unknown_shards():
            self._check(deadline, "is being counted")
            ledger.put(shard, self._folder.count(shard))

    @contextmanager
    def _locked(self, deadline: float) -> Iterator[Ledger]:
        if not self._turn.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise self._late("is locked for too long")
        try:
            descriptor = self._open_locked(deadline)
            try:
                self._last = ledger = Ledger(descriptor, self._last)
                yield ledger
            finally:
                os.close(descriptor)  # and ends the lock
        finally:
            self._turn.release()

    def _open_locked(self, deadline: float) -> int:
        """The open and locked file, which is really the one in the folder: not removed since it was opened."""
        while True:
            descriptor = self._open()
            try:
                self._lock(descriptor, deadline)
                if os.fstat(descriptor).st_nlink:
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _open(self) -> int:
        path = f"{self._folder.path}/account"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            make_folder(Path(self._folder.path))
            return os.open(path, flags, 0o600)

    def _lock(self, descriptor: int, deadline: float) -> None:
        """NOTE: Asks again and again: a wait in the kernel could not be ended, and the holder may be stopped."""
        pause = _SHORTEST_PAUSE
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._check(deadline, "is locked for too long by another server")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _check(self, deadline: float, why: str) -> None:
        if time.monotonic() > deadline:
            raise self._late(why)

    def _late(self, why: str) -> UnavailableError:
        return UnavailableError(f"the account of {self._folder.path} {why}")


def _read(descriptor: int) -> bytes:
    """The file. If it is new, or no account of this version, all shards are unknown from now on."""
    content = os.pread(descriptor, _FILE_BYTES + 1, 0)
    if len(content) != _FILE_BYTES or not content.startswith(_MAGIC):
        content = _MAGIC + _UNKNOWN * SHARDS
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, _FILE_BYTES)
    return content
