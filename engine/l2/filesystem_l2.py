"""L2 in a folder of a file system, local or shared: a file for each object. Several servers may use one folder.

How the folder is laid out is said in `folder.py`, and how its servers count together in `folder_account.py`. Readers
lock nothing: an object is a whole file at any time, and stays readable while it is replaced or evicted.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from stat import S_ISREG
from typing import Final

from engine.l2.base import (
    AbsentError,
    DeniedError,
    FullError,
    L2Adapter,
    L2Error,
    Stored,
    UnavailableError,
    Usage,
)
from engine.l2.folder import SHARDS, Count, Draft, Folder, Found, held, occupied, shard_of
from engine.l2.folder_account import Account
from engine.l2.folder_victims import Victims
from engine.l2.vectors import allocate, are_pages, make_direct, read_all, size_of, write_all

STAMP_SECONDS: Final = 60.0
"""How old the stamp of a use may get before the next use renews it: most reads write nothing."""
RECOUNT_SECONDS: Final = 10.0
"""Pause between two recounts of a part of the folder, at least."""
_RECOUNT_SHARE: Final = 100
"""They take a hundredth of the time at most."""
_EVICTION_STEP: Final = 16
"""A write evicts so many times its own size at most: a file system that others fill must not cost the whole cache at
once, nor may one that frees nothing (snapshots)."""
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


class Adapter(L2Adapter):
    """Objects as files.

    NOTE: No time limit helps where the kernel itself waits for ever for a device or a network file system that does
    not answer. Mount the latter so that it gives up (NFS: `soft`).
    """

    def __init__(
        self,
        *,
        path: str,
        capacity: int | None = None,
        keep_free: int = 1 << 30,
        fsync: bool = False,
        direct: bool = False,
        timeout: float = 5.0,
    ) -> None:
        """All servers on a folder need the same user, and the same limits for these to hold.

        `capacity` is how many bytes the files may occupy, counted in blocks of 4096, whoever wrote them; the least
        recently used go. `keep_free` are the bytes of the file system that stay free whoever fills it. With `fsync` an
        object survives a loss of power as soon as it is written. `direct` goes past the page cache with objects whose
        buffers are whole pages. `timeout` is the seconds that a call may wait for others' use of the account.
        """
        self._capacity = capacity
        self._keep_free = keep_free
        self._fsync = fsync
        self._direct = direct
        self._timeout = timeout
        self._folder = Folder(path)
        self._account = Account(self._folder)
        self._victims = Victims(self._folder)
        self._rotation = cycle(range(SHARDS))
        self._next_recount = 0.0
        """By `time.monotonic`."""

    def open(self, memory: Sequence[memoryview]) -> None:
        """Counts the whole folder, which takes a while with millions of objects; others may write meanwhile. Removes
        what killed servers have left half-written, and what is more than the capacity."""
        with self._errors("opening"):
            self._folder.make(self._fsync)
            for shard in range(SHARDS):
                self._account.recount(shard, self._deadline())
            with self._account.locked(self._deadline()) as ledger:
                surplus = self._surplus(ledger.total, ledger.total.reserved)
            self._evict(surplus, None)

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def contains(self, names: Sequence[str]) -> list[bool]:
        with self._errors("looking into"):
            return [self._has(name) for name in names]

    def read_into(self, name: str, buffers: Sequence[memoryview]) -> int:
        return self.read_pieces(name, buffers, lambda piece: None)

    def read_pieces(self, name: str, buffers: Sequence[memoryview], filled: Callable[[memoryview], object]) -> int:
        return self._read(name, buffers, filled, is_use=True)

    def inspect(self, name: str, buffers: Sequence[memoryview], filled: Callable[[memoryview], object]) -> int:
        """NOTE: Past the page cache, which may have the right bytes still, and has better things to keep."""
        return self._read(name, buffers, filled, is_use=False)

    def write(self, name: str, buffers: Sequence[memoryview]) -> None:
        deadline = self._deadline()
        with self._errors("writing to"):
            self._recount_if_due(deadline)
            with self._drafted(name, occupied(size_of(buffers)), deadline) as draft:
                self._fill(draft, buffers)
                self._publish(draft, deadline)
            if self._fsync:
                self._folder.sync(draft.shard)

    def delete(self, names: Sequence[str]) -> None:
        deadline = self._deadline()
        with self._errors("deleting from"):
            for name in names:
                if self._has(name):
                    self._remove(name, deadline)

    def scan(self) -> Iterator[Stored]:
        for shard in range(SHARDS):
            with self._errors("looking into"):
                objects = self._folder.objects(shard)
            for found in objects:
                yield Stored(found.name, found.size)

    def used(self) -> Usage:
        """Bytes are those of whole blocks."""
        with self._errors("looking into"), self._account.locked(self._deadline()) as ledger:
            return Usage(ledger.total.objects, ledger.total.bytes)

    # Reading

    def _read(
        self, name: str, buffers: Sequence[memoryview], filled: Callable[[memoryview], object], *, is_use: bool
    ) -> int:
        with self._errors("reading from"), self._opened(name) as descriptor:
            status = os.fstat(descriptor)
            if not S_ISREG(status.st_mode):
                raise AbsentError(f"{name} is no file")
            if is_use:
                self._renew_stamp(descriptor, status)
            if status.st_size != size_of(buffers):
                return status.st_size
            if (self._direct or not is_use) and are_pages(buffers):
                make_direct(descriptor)
            return read_all(descriptor, buffers, filled)

    def _has(self, name: str) -> bool:
        try:
            return S_ISREG(os.lstat(self._folder.object_path(name)).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Raises AbsentError, also where a link lies in the place of an object; and waits for no pipe there."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._folder.object_path(name), flags)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                raise AbsentError(f"there is no object {name}") from None
            raise
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _renew_stamp(self, descriptor: int, status: os.stat_result) -> None:
        """NOTE: The stamp is ours, since most file systems are mounted so that they note few reads or none. What
        cannot be stamped, as in a folder that became read-only, can still be read."""
        if abs(time.time() - status.st_mtime) > STAMP_SECONDS:
            with suppress(OSError):
                os.utime(descriptor)

    # Writing

    @contextmanager
    def _drafted(self, name: str, room: int, deadline: float) -> Iterator[Draft]:
        """The file of a new object, with room for it on the account; both are gone if what is done inside fails.

        Raises FullError.
        """
        if self._capacity is not None and room > self._capacity:
            raise FullError(f"an object of {room} bytes is larger than the capacity of {self._capacity}")
        # PERF: Made before the account is locked: that takes most file systems longer than all that is done under it.
        with self._folder.draft(name, room, self._fsync) as draft:
            self._reserve(draft, deadline)
            try:
                yield draft
            except BaseException:
                self._discard(draft, deadline)
                raise

    def _reserve(self, draft: Draft, deadline: float) -> None:
        room = draft.room
        budget = _EVICTION_STEP * room
        while True:
            with self._account.locked(deadline) as ledger:
                lack = self._lack(ledger.total, room)
                if lack <= 0:
                    with ledger.changing(draft.shard) as count:
                        draft.claim()
                        count.reserved += room
                    return
            if budget <= 0:
                raise FullError(f"{self._folder.path} has no room for {room} bytes: {lack} more would have to go")
            # NOTE: Other writers may be faster to take what is evicted here.
            step = min(lack, budget)
            if not self._evict(step, deadline):
                self._recount_writing(deadline)
            budget -= max(step, room)

    def _lack(self, total: Count, room: int) -> int:
        """Bytes that have to go before `room` more may be written.

        NOTE: What is reserved is counted as not yet written, though a part of it is, and so is free no longer.
        """
        reserved = room + total.reserved
        return max(self._surplus(total, reserved), self._keep_free + reserved - self._folder.free())

    def _surplus(self, total: Count, reserved: int) -> int:
        """Bytes above the capacity."""
        return 0 if self._capacity is None else total.bytes + reserved - self._capacity

    def _fill(self, draft: Draft, buffers: Sequence[memoryview]) -> None:
        if self._direct and are_pages(buffers):
            make_direct(draft.descriptor)
        allocate(draft.descriptor, size_of(buffers))
        write_all(draft.descriptor, buffers)
        if self._fsync:
            os.fsync(draft.descriptor)

    def _publish(self, draft: Draft, deadline: float) -> None:
        path = self._folder.object_path(draft.name)
        with ExitStack() as later, self._account.locked(deadline) as ledger, ledger.changing(draft.shard) as count:
            before = later.enter_context(held(path))
            self._folder.put(draft, self._fsync)
            count.reserved -= draft.room
            count.bytes += draft.room - (occupied(before.st_size) if before else 0)
            count.objects += 0 if before else 1

    def _discard(self, draft: Draft, deadline: float) -> None:
        """NOTE: If this fails too, the next count of the shard corrects the account."""
        with (
            suppress(OSError, L2Error),
            self._account.locked(deadline) as ledger,
            ledger.changing(draft.shard) as count,
        ):
            os.unlink(draft.path)  # noqa: PTH108
            count.reserved -= draft.room

    # Removing

    def _remove(self, name: str, deadline: float, stamp: int | None = None) -> int:
        """Removes an object, unless it was used since `stamp`; returns the bytes that this has freed."""
        path = self._folder.object_path(name)
        with ExitStack() as later, self._account.locked(deadline) as ledger:
            status = later.enter_context(held(path))
            if status is None or stamp not in (None, status.st_mtime_ns):
                return 0
            with ledger.changing(shard_of(name)) as count:
                with suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108
                count.objects -= 1
                count.bytes -= occupied(status.st_size)
            return occupied(status.st_size)

    def _evict(self, size: int, deadline: float | None) -> bool:
        """Makes room for so many bytes; False if there is nothing left to evict. Without a deadline each removal has
        its own."""
        while size > 0:
            victim: Found | None = self._victims.next()
            if victim is None:
                return False
            size -= self._remove(victim.name, deadline or self._deadline(), victim.stamp)
        return True

    # The account

    def _recount_if_due(self, deadline: float) -> None:
        """Counts a part of the folder now and then: the next shard in turn, which finds what was done to it behind our
        back, and what killed servers have left."""
        started = time.monotonic()
        if started < self._next_recount:
            return
        self._next_recount = started + RECOUNT_SECONDS
        self._account.recount(next(self._rotation), deadline)
        self._recount_writing(deadline)
        now = time.monotonic()
        self._next_recount = now + max(RECOUNT_SECONDS, _RECOUNT_SHARE * (now - started))

    def _recount_writing(self, deadline: float) -> None:
        """Counts where something is being written, or was by a server that was killed: that room comes back."""
        with self._account.locked(deadline) as ledger:
            shards = ledger.writing_shards()
        for shard in shards:
            self._account.recount(shard, deadline)

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turns what the system says into the closed list."""
        try:
            yield
        except OSError as error:
            kind = FullError if error.errno in _FULL else DeniedError if error.errno in _DENIED else UnavailableError
            raise kind(f"{doing} {self._folder.path} failed: {error.strerror}") from None
