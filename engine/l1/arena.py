"""The shared memory behind L1: one POSIX segment, allocated and touched before use, that workers map too."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from engine.errors import NoMemoryError, StartError

SHM_FOLDER: Final = "/dev/shm"
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
        self, name: str, size: int, length: int | None = None, progress: Callable[[int], None] = lambda done: None
    ) -> None:
        """Calls `progress` with the bytes allocated so far; what that raises ends the construction and leaves nothing.

        `length` is `size` if it is not given. Raises StartError when the name is taken, /dev/shm is too small, or the
        memory cannot be pinned.
        """
        self.name: Final = name
        self.length: Final = length or size
        """Bytes that clients map."""
        self._path = Path(SHM_FOLDER, name)
        self._pinned: list[int] = []
        """Addresses of the ranges that are pinned."""
        self._pinned_end = 0
        self._descriptor = _create(self._path)
        try:
            self._mapping = _mapped(self._descriptor, size, self.length)
            self.bytes: Final = torch.frombuffer(self._mapping, dtype=torch.uint8)
            """The whole segment, uint8."""
            self._allocate(0, size, progress)
        except BaseException:
            self.unlink()
            raise

    def grow(self, start: int, end: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Allocates [start, end) too. May be called from any thread, while the range is nobody's.

        Raises NoMemoryError; then nothing is taken.
        """
        try:
            self._allocate(start, end, progress)
        except StartError as error:
            self.discard(start, end)
            raise NoMemoryError(str(error)) from None

    def discard(self, start: int, end: int) -> None:
        """Gives the memory of [start, end) back, which is nobody's. What is pinned stays, for the next growth."""
        start = max(start, self._pinned_end)
        if start < end:
            self._mapping.madvise(mmap.MADV_REMOVE, start, end - start)

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

    def _allocate(self, start: int, end: int, progress: Callable[[int], None]) -> None:
        """Allocates every page, so that none is missing later, and brings it into this process's tables.

        PERF: through torch, which lets other threads run meanwhile; `MAP_POPULATE` would stop them all.
        """
        for step in range(start, end, _STEP_BYTES):
            step_end = min(step + _STEP_BYTES, end)
            try:
                os.posix_fallocate(self._descriptor, step, step_end - step)
            except OSError as error:
                raise _too_large(end - start, str(error)) from None
            self.bytes[step:step_end:_PAGE_BYTES].max()
            progress(step_end)
        if torch.cuda.is_available():
            self._pin(max(start, self._pinned_end), end)

    def _pin(self, start: int, end: int) -> None:
        if start >= end:
            return
        address = self.bytes.data_ptr() + start
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        result = runtime.cudaHostRegister(address, end - start, 0)
        if int(result) != 0:
            raise StartError(f"cannot pin {end - start} bytes of L1 for the GPU (cudaHostRegister said {result})")
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


def _mapped(descriptor: int, size: int, length: int) -> mmap.mmap:
    if size > _free_bytes():
        raise _too_large(size, "checked before anything was allocated")
    try:
        os.ftruncate(descriptor, length)
        return mmap.mmap(descriptor, length, mmap.MAP_SHARED)
    except OSError as error:
        raise _too_large(size, str(error)) from None


def _free_bytes() -> int:
    found = os.statvfs(SHM_FOLDER)
    return found.f_bavail * found.f_frsize


def _too_large(size: int, reason: str) -> StartError:
    return StartError(
        f"L1 of {size} bytes does not fit into {SHM_FOLDER}, which has {_free_bytes()} bytes free ({reason}); "
        f"make l1.size smaller or {SHM_FOLDER} larger"
    )
