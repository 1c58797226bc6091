"""The shared memory behind L1: one POSIX segment, allocated and touched once, that engine-driven workers map too."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from engine.errors import StartError

SHM_FOLDER: Final = "/dev/shm"
PREFIX: Final = "kvkeep_arena_"
"""How the names of arenas begin, by which leftovers are found."""
_STEP_BYTES: Final = 256 << 20
_PAGE_BYTES: Final = 4096


class Arena:
    """`size` bytes of shared memory named `name`, zeroed and resident; pinned where there is a GPU.

    The segment exists from construction to `close`. Mappings of other processes outlive it.
    """

    def __init__(self, name: str, size: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Calls `progress` with the bytes allocated so far; what that raises ends the construction and leaves nothing.

        Raises StartError when the name is taken, /dev/shm is too small, or the memory cannot be pinned.
        """
        self.name: Final = name
        self.size: Final = size
        self._path = Path(SHM_FOLDER, name)
        self._pinned = False
        descriptor = _create(self._path)
        try:
            self.bytes: Final = _map(descriptor, size)
            """The whole arena, uint8."""
            self._allocate(descriptor, progress)
            self._pinned = torch.cuda.is_available() and self._pin()
        except BaseException:
            self._path.unlink()
            raise
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Removes the name; the memory goes when the last process that maps it lets go. A second call does nothing."""
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self.bytes.data_ptr())  # type: ignore[no-untyped-call]
            self._pinned = False
        self._path.unlink(missing_ok=True)

    def _allocate(self, descriptor: int, progress: Callable[[int], None]) -> None:
        """Allocates every page, so that none is missing later, and brings it into this process's tables.

        PERF: through torch, which lets other threads run meanwhile; `MAP_POPULATE` would stop them all.
        """
        for start in range(0, self.size, _STEP_BYTES):
            end = min(start + _STEP_BYTES, self.size)
            try:
                os.posix_fallocate(descriptor, start, end - start)
            except OSError as error:
                raise _too_large(self.size, str(error)) from None
            self.bytes[start:end:_PAGE_BYTES].max()
            progress(end)

    def _pin(self) -> bool:
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        result = runtime.cudaHostRegister(self.bytes.data_ptr(), self.size, 0)
        if int(result) != 0:
            raise StartError(f"cannot pin {self.size} bytes of L1 for the GPU (cudaHostRegister said {result})")
        return True


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


def _map(descriptor: int, size: int) -> torch.Tensor:
    if size > _free_bytes():
        raise _too_large(size, "checked before anything was allocated")
    try:
        os.ftruncate(descriptor, size)
        return torch.frombuffer(mmap.mmap(descriptor, size, mmap.MAP_SHARED), dtype=torch.uint8)
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
