"""The shared memory behind L1: one POSIX segment, allocated and touched once, that engine-driven workers map too."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final

import torch

from engine.errors import StartError

SHM_FOLDER: Final = "/dev/shm"
_TOUCH_BYTES: Final = 256 << 20
_PAGE_BYTES: Final = 4096


class Arena:
    """`size` bytes of shared memory named `name`, zeroed and resident; pinned where there is a GPU.

    The segment exists from construction to `close`. Mappings of other processes outlive it.
    """

    def __init__(self, name: str, size: int) -> None:
        """Raises StartError when the name is taken or /dev/shm is too small."""
        self.name: Final = name
        self.size: Final = size
        self._path = Path(SHM_FOLDER, name)
        self._mapping = _create(self._path, size)
        self.bytes: Final = torch.frombuffer(self._mapping, dtype=torch.uint8)
        """The whole arena, uint8."""
        self._touch()
        self._pinned = torch.cuda.is_available() and self._pin()

    def close(self) -> None:
        """Removes the name; the memory goes when the last process that maps it lets go. A second call does nothing."""
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self.bytes.data_ptr())  # type: ignore[no-untyped-call]
            self._pinned = False
        self._path.unlink(missing_ok=True)

    def _touch(self) -> None:
        """Brings every page into this process's tables now, so that no copy meets a page fault later.

        PERF: through torch, which lets other threads run meanwhile; `MAP_POPULATE` would stop them all.
        """
        for start in range(0, self.size, _TOUCH_BYTES):
            self.bytes[start : start + _TOUCH_BYTES : _PAGE_BYTES].max()

    def _pin(self) -> bool:
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        result = runtime.cudaHostRegister(self.bytes.data_ptr(), self.size, 0)
        if int(result) != 0:
            self._path.unlink()
            raise StartError(f"cannot pin {self.size} bytes of L1 for the GPU (cudaHostRegister said {result})")
        return True


def _create(path: Path, size: int) -> mmap.mmap:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise StartError(f"{path} exists: another server uses it, or an ended one left it; remove it if so") from None
    try:
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED)
    except OSError as error:
        path.unlink()
        free = os.statvfs(SHM_FOLDER)
        raise StartError(
            f"L1 of {size} bytes does not fit into {SHM_FOLDER}, which has {free.f_bavail * free.f_frsize} bytes free "
            f"({error.strerror}); make l1.size smaller or {SHM_FOLDER} larger"
        ) from None
    finally:
        os.close(descriptor)
