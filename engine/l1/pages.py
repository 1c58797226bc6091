"""What the kernel is asked to do with the pages of a mapping.

PERF: Through ctypes, which lets other threads run meanwhile. `mmap.madvise` stops them all, for 0.2 s per GiB that is
given back. Addresses and lengths are in bytes, addresses multiples of a page.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Final

_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE of Linux 5.14, which Python has no name for yet."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def populate(address: int, length: int) -> bool:
    """Allocates what is missing and brings all of it into this process's tables; False if the kernel is too old.

    Raises OSError, where touching the pages would end the process.
    """
    try:
        _advise(address, length, _POPULATE_WRITE)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno == errno.EFAULT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise
    return True


def want_huge(address: int, length: int) -> None:
    """Makes what is populated from now on huge pages where that may be. A kernel without them is no error."""
    try:
        _advise(address, length, mmap.MADV_HUGEPAGE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def remove(address: int, length: int) -> None:
    """Gives the memory of a shared mapping back; who reads there sees zeros. Raises OSError."""
    _advise(address, length, mmap.MADV_REMOVE)


def _advise(address: int, length: int, advice: int) -> None:
    if _libc.madvise(address, length, advice) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
