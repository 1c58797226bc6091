"""Opening the memory of other processes as tensors. The CUDA half is thin, and has not met a GPU yet."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from typing import Final

import torch

from engine.layouts import TensorDescriptor

SHM_FOLDER: Final = "/dev/shm"
_PAGE_BYTES: Final = 4096
_STEP_BYTES: Final = 256 << 20


class OpenError(Exception):
    """Memory that cannot be used; says which and why."""


def open_storage(descriptor: TensorDescriptor, beat: Callable[[], None] = lambda: None) -> torch.Tensor:
    """The whole storage that a descriptor's tensor is a view of, as a uint8 tensor. Raises OpenError.

    The memory stays open as long as the tensor, or a view of it, is referenced. `beat` is called now and then, since
    opening hundreds of GiB takes a while.
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


def _open_shm(name: str, nbytes: int, beat: Callable[[], None]) -> torch.Tensor:
    """Maps a POSIX segment by hand: Python's SharedMemory would remove the client's segment at our exit."""
    plain = name.removeprefix("/")
    if not plain or "/" in plain or "\0" in plain or plain in (".", ".."):
        raise OpenError(f"{name!r} is no name of a shared-memory segment")
    path = f"{SHM_FOLDER}/{plain}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise OpenError(
            f"cannot open {path}: {error.strerror}; kvkeep and the engine must share /dev/shm and the user"
        ) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size < nbytes:
            raise OpenError(f"{path} has {found.st_size} bytes, the registration says {nbytes}")
        memory = torch.frombuffer(mmap.mmap(descriptor, nbytes, mmap.MAP_SHARED), dtype=torch.uint8)
    except OSError as error:
        raise OpenError(f"cannot map {nbytes} bytes of {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    # PERF: Brings every page into our tables now; a copy that meets page faults is several times slower.
    for start in range(0, nbytes, _STEP_BYTES):
        memory[start : start + _STEP_BYTES : _PAGE_BYTES].max()
        beat()
    return memory


def _open_cuda(descriptor: TensorDescriptor) -> torch.Tensor:
    """Opens torch's own CUDA IPC handle, on the local device with the same UUID."""
    metadata = descriptor.metadata
    assert metadata is not None  # engine.layouts refused it
    ordinal = _cuda_ordinal(metadata.device_uuid)
    try:
        storage = torch.UntypedStorage._new_shared_cuda(ordinal, *descriptor.handle[1:])
    except (RuntimeError, TypeError) as error:
        raise OpenError(f"the CUDA handle cannot be opened: {error}") from None
    return torch.empty(0, dtype=torch.uint8, device=f"cuda:{ordinal}").set_(storage)


def _cuda_ordinal(device_uuid: str) -> int:
    if torch.cuda.is_available():
        for ordinal in range(torch.cuda.device_count()):
            if str(torch.cuda.get_device_properties(ordinal).uuid) == device_uuid:
                return ordinal
    raise OpenError(f"the KV cache is on CUDA device {device_uuid}, which this server does not see")
