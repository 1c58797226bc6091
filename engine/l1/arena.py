"""The shared memory behind L1: one POSIX segment, allocated and touched before use, that workers map too."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch

from engine.errors import NoMemoryError, StartError
from engine.l1 import huge_pages, pages, preflight
from engine.l1.preflight import Room, readable
from engine.l1.rooms import SHM_FOLDER, rooms
from engine.settings import HugePages

logger = logging.getLogger(__name__)

PREFIX: Final = "kvkeep_arena_"
"""How the names of arenas begin, by which leftovers are found."""
_STEP_BYTES: Final = 256 << 20
_PAGE_BYTES: Final = 4096


class Arena:
    """Shared memory named `name`: `length` bytes, of which the first `size` are zeroed, resident, and pinned where
    there is a GPU. What lies behind takes no memory until `grow`.

    The segment exists from construction to `close`. Mappings of other processes outlive it.
    """

    def __init__(
        self,
        name: str,
        size: int,
        length: int | None = None,
        progress: Callable[[int], None] = lambda done: None,
        huge: HugePages = "system",
        find_rooms: Callable[[], Sequence[Room]] = rooms,
    ) -> None:
        """Calls `progress` with the bytes allocated so far; what that raises ends the construction and leaves nothing.

        `length` is `size` if it is not given. Raises StartError when the memory is not there, which is looked at before
        anything is allocated, when the name is taken, or when the memory cannot be pinned or had as `huge` requires.
        """
        self.name: Final = name
        self.length: Final = length or size
        """Bytes that clients map."""
        self._huge: Final = huge
        self._find_rooms = find_rooms
        self._look_before(size, "")
        self._path = Path(SHM_FOLDER, name)
        self._pinned: list[int] = []
        """Addresses of the ranges that are pinned."""
        self._pinned_end = 0
        self._descriptor = _create(self._path)
        try:
            self.bytes: Final = torch.frombuffer(_mapped(self._descriptor, self.length), dtype=torch.uint8)
            """The whole segment, uint8."""
            self._address: Final = self.bytes.data_ptr()
            self.memory: Final = self.bytes.numpy().data
            """The same bytes, writable, for those who do not know torch."""
            self._allocate(0, size, progress)
        except BaseException:
            # NOTE: The mapping lives as long as somebody holds the error and with it these frames; the memory must not.
            os.ftruncate(self._descriptor, 0)
            self.unlink()
            raise

    def grow(self, start: int, end: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Allocates [start, end) too. May be called from any thread, while the range is nobody's.

        Raises NoMemoryError; then nothing is taken.
        """
        try:
            # What is pinned was never given back.
            self._look_before(end - max(start, self._pinned_end), " more")
            self._allocate(start, end, progress)
        except StartError as error:
            self.discard(start, end)
            raise NoMemoryError(str(error)) from None

    def discard(self, start: int, end: int) -> None:
        """Gives the memory of [start, end) back, which is nobody's. What is pinned stays, for the next growth."""
        start = max(start, self._pinned_end)
        if start < end:
            pages.remove(self._address + start, end - start)

    def close(self) -> None:
        """Removes the name; the memory goes when the last process that maps it lets go. A second call does nothing."""
        for address in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
        self._pinned = []
        self.unlink()

    def unlink(self) -> None:
        """Removes the name only, without a word to the GPU: a copy may be stuck there."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def _look_before(self, size: int, more: str) -> None:
        """Raises StartError if `size` more bytes cannot be had, or not as they have to be."""
        found = self._find_rooms()
        if problem := preflight.refusal(size, found):
            raise StartError(f"{readable(size)}{more} of L1 do not fit: {problem}")
        for warning in preflight.warnings(size, self.length, found):
            logger.warning("L1: %s", warning)
        if self._huge == "require" and (why := huge_pages.obstacle()):
            raise StartError(f"l1.huge_pages is require, but {why}; or set it to try")

    def _allocate(self, start: int, end: int, progress: Callable[[int], None]) -> None:
        """Allocates every page, so that none is missing later, and brings it into this process's tables."""
        before = self._count_huge()
        if self._huge != "system":
            pages.want_huge(self._address, end)
        for step in range(start, end, _STEP_BYTES):
            step_end = min(step + _STEP_BYTES, end)
            try:
                self._populate(step, step_end)
            except OSError as error:
                raise _too_large(end - start, error) from None
            progress(step_end)
        self._judge_huge(start, end, self._count_huge() - before)
        if torch.cuda.is_available():
            self._pin(max(start, self._pinned_end), end)

    def _populate(self, start: int, end: int) -> None:
        """Raises OSError.

        NOTE: What is allocated through the file gets small pages where huge ones are for those who ask: the file does
        not know what was asked of the mapping. PERF: Otherwise both together are faster than the mapping alone.
        """
        address, size = self._address + start, end - start
        if self._huge != "system" and pages.populate(address, size):
            return
        os.posix_fallocate(self._descriptor, start, size)
        if not pages.populate(address, size):
            self.bytes[start:end:_PAGE_BYTES].max()

    def _count_huge(self) -> int:
        """Bytes in huge pages, which takes the kernel a while; 0 where nobody wants to know."""
        if self._huge == "system":
            return 0
        with Path("/proc/self/smaps").open() as smaps:
            return huge_pages.mapped_huge(smaps, self._address, self.length)

    def _judge_huge(self, start: int, end: int, given: int) -> None:
        """Raises StartError if huge pages are required and missing."""
        if self._huge == "system":
            return
        possible = huge_pages.whole_pages(self._address + start, end - start, huge_pages.page_bytes())
        problem = huge_pages.shortfall(given, possible, huge_pages.obstacle())
        if problem is None:
            logger.info("L1: %s of %s are in huge pages", readable(given), readable(end - start))
        elif self._huge == "require":
            raise StartError(f"l1.huge_pages is require, but only {problem}; or set it to try")
        else:
            logger.warning("L1: only %s", problem)

    def _pin(self, start: int, end: int) -> None:
        if start >= end:
            return
        address = self._address + start
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        result = runtime.cudaHostRegister(address, end - start, 0)
        if int(result) != 0:
            raise StartError(f"cannot pin {readable(end - start)} of L1 for the GPU (cudaHostRegister said {result})")
        self._pinned.append(address)
        self._pinned_end = end


def remove_leftovers() -> list[str]:
    """Removes the segments of servers that were killed, which nobody else does; returns their names.

    A living server holds a lock on its own, in whatever container or process namespace it runs. What cannot be opened
    belongs to another user and is left alone.
    """
    return [path.name for path in Path(SHM_FOLDER).glob(f"{PREFIX}*") if _remove_if_left(path)]


def _remove_if_left(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _create(path: Path) -> int:
    """A new file, locked, which tells that its owner lives.

    NOTE: The lock belongs to the open file, of which the mapping keeps a duplicate: it ends with the mapping, or with
    the process, however that ends.
    """
    descriptor = _open_new(path)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    if os.fstat(descriptor).st_nlink:
        return descriptor
    # A server that starts at this moment has met it between its creation and the lock.
    os.close(descriptor)
    return _create(path)


def _open_new(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise StartError(f"{path} exists: another server uses it, or an ended one left it; remove it if so") from None
    except OSError as error:
        raise StartError(f"cannot create {path}: {error.strerror}") from None


def _mapped(descriptor: int, length: int) -> mmap.mmap:
    try:
        os.ftruncate(descriptor, length)
        return mmap.mmap(descriptor, length, mmap.MAP_SHARED)
    except (OSError, OverflowError) as error:
        raise StartError(f"cannot map {readable(length)} of shared memory: {error}; make l1.max_size smaller") from None


def _too_large(size: int, error: OSError) -> StartError:
    """The preflight found room that others have taken since."""
    return StartError(
        f"{readable(size)} of L1 could not be allocated in {SHM_FOLDER}: {error.strerror}; make l1.size smaller or "
        f"{SHM_FOLDER} larger"
    )
