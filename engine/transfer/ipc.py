"""Opening the memory of other processes as tensors. The CUDA half is thin, and has not met a GPU yet."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import torch

from engine.layouts import TensorDescriptor
from engine.transfer import sigbus

SHM_FOLDER: Final = "/dev/shm"
_PAGE_BYTES: Final = 4096
_STEP_BYTES: Final = 256 << 20


class OpenError(Exception):
    """Memory that cannot be used; says which and why."""


class Storage:
    """Memory of another process. It stays open as long as its tensor, or a view of that, is referenced."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.bytes: Final = memory
        """All of it, uint8."""

    def problem(self) -> str | None:
        """Why the memory cannot be used any more; None if it can. Cheap enough to be asked before and after a copy."""
        return None

    def close(self) -> None:
        """To be called before the last reference to the memory is given up."""


class Segment(Storage):
    """A mapped POSIX segment, which the client can cut short at any time."""

    def __init__(self, path: str, mapping: mmap.mmap, nbytes: int) -> None:
        super().__init__(torch.frombuffer(mapping, dtype=torch.uint8))
        self._path = path
        self._mapping = mapping
        self._nbytes = nbytes
        self._watched = sigbus.watch(self.bytes.data_ptr(), nbytes)
        # Behind `close`, for whoever forgets it: the addresses will be somebody else's.
        weakref.finalize(mapping, sigbus.forget, self._watched).atexit = False

    def problem(self) -> str | None:
        if self._watched.is_lost or self._mapping.size() < self._nbytes:
            return f"{self._path} has been cut short, to {self._mapping.size()} of the {self._nbytes} registered bytes"
        return None

    def close(self) -> None:
        sigbus.forget(self._watched)


def open_storage(descriptor: TensorDescriptor, beat: Callable[[], None] = lambda: None) -> Storage:
    """The whole storage that a descriptor's tensor is a view of. Raises OpenError.

    `beat` is called now and then, since opening hundreds of GiB takes a while.
    """
    if descriptor.type == "cpu_shm":
        return _open_shm(descriptor.shm_name, descriptor.nbytes, beat)
    return _open_cuda(descriptor)


def release_unused(device: torch.device) -> None:
    """Gives memory of other processes back to the driver once no tensor refers to it any more."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]


def wait_for(event_handle: bytes, device: torch.device) -> None:
    """Makes the current stream of a CUDA device wait for the work behind a client's event; on a CPU there is none."""
    if device.type == "cuda" and event_handle:
        event = torch.cuda.Event.from_ipc_handle(device, event_handle)  # type: ignore[no-untyped-call]
        torch.cuda.current_stream(device).wait_event(event)


def _open_shm(name: str, nbytes: int, beat: Callable[[], None]) -> Storage:
    """Maps a POSIX segment by hand: Python's SharedMemory would remove the client's segment at our exit."""
    plain = name.removeprefix("/")
    if not plain or "/" in plain or "\0" in plain or plain in (".", ".."):
        raise OpenError(f"{name!r} is no name of a shared-memory segment")
    path = f"{SHM_FOLDER}/{plain}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise OpenError(
            f"cannot open {path}: {error.strerror}; kvkeep and the engine must share /dev/shm and the user"
        ) from None
    try:
        _check_segment(descriptor, path, nbytes)
        segment = Segment(path, mmap.mmap(descriptor, nbytes, mmap.MAP_SHARED), nbytes)
    except (OSError, OverflowError, ValueError) as error:
        raise OpenError(f"cannot map {nbytes} bytes of {path}: {error}") from None
    finally:
        os.close(descriptor)
    _touch(segment, beat)
    return segment


def _check_segment(descriptor: int, path: str, nbytes: int) -> None:
    """Refuses what is no segment of a client of ours. Raises OpenError.

    Whoever can send us a message could otherwise have us read and write what only we may open: files of others if we
    are root, and the pools of servers, ours among them, with what other clients have stored.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size < nbytes:
        raise OpenError(f"{path} has {found.st_size} bytes, the registration says {nbytes}")
    if found.st_uid != os.geteuid():
        raise OpenError(f"{path} belongs to user {found.st_uid}, and not to {os.geteuid()}, who runs kvkeep")
    # A server holds a lock on its pool, by whatever name that is reached; no client locks its segments.
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return
    raise OpenError(f"{path} is the pool of a server, not the segment of a client")


def _touch(segment: Segment, beat: Callable[[], None]) -> None:
    """PERF: Brings every page into our tables now; a copy that meets page faults is several times slower."""
    memory = segment.bytes
    for start in range(0, memory.numel(), _STEP_BYTES):
        memory[start : start + _STEP_BYTES : _PAGE_BYTES].max()
        beat()
        if problem := segment.problem():
            segment.close()
            raise OpenError(problem)


def _open_cuda(descriptor: TensorDescriptor) -> Storage:
    """Opens torch's own CUDA IPC handle, on the local device with the same UUID."""
    metadata = descriptor.metadata
    assert metadata is not None  # engine.layouts refused it
    ordinal = _cuda_ordinal(metadata.device_uuid)
    try:
        storage = torch.UntypedStorage._new_shared_cuda(ordinal, *descriptor.handle[1:])
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise OpenError(f"the CUDA handle cannot be opened: {error}") from None
    return Storage(torch.empty(0, dtype=torch.uint8, device=f"cuda:{ordinal}").set_(storage))


def _cuda_ordinal(device_uuid: str) -> int:
    if torch.cuda.is_available():
        for ordinal in range(torch.cuda.device_count()):
            if str(torch.cuda.get_device_properties(ordinal).uuid) == device_uuid:
                return ordinal
    raise OpenError(f"the KV cache is on CUDA device {device_uuid}, which this server does not see")
