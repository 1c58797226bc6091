"""What happens when a client cuts its shared memory short while we read or write it.

A touch behind the end of a mapped file raises SIGBUS, which ends the process. Looking at the file's size before is no
help against a client that cuts it during the copy. So the signal is caught: if the address lies in memory of a client
that is watched, that memory is replaced by an anonymous mapping, which is zeros, and is lost from then on; the copy
goes on, and whoever asked for it looks afterwards whether the memory is still there. For any other address what was
done about the signal before is done. The idea is that of systemd's `sigbus.c`.

NOTE: The handler is Python. That is safe for the memory that is watched, since nothing but the loops of numpy and torch
that copy touches it: they hold no lock that the handler could want, but maybe the interpreter's, which the same thread
may take again.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import signal
import threading
from typing import Final

_SIGINFO: Final = 4
_MAP_NORESERVE: Final = 0x4000
_MAP_FIXED: Final = 0x10
_ADDRESS_OFFSET: Final = 16
"""Where `si_addr` lies in a `siginfo_t` of 64-bit Linux."""
_KNOWN_MACHINES: Final = ("x86_64", "aarch64")
"""Where the C library's `struct sigaction` has the form below."""


class _Action(ctypes.Structure):
    """`struct sigaction` of the C library."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)


class Watched:
    """Addresses [start, end) of a mapping of a client's memory; whole pages."""

    def __init__(self, start: int, size: int) -> None:
        self.start: Final = start
        self.end: Final = start + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.is_lost = False
        """Whether something else than the client's memory is at these addresses, since a page of it was missing."""

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end


_watched: tuple[Watched, ...] = ()
"""Replaced as a whole: the handler may look at any time."""
_changing: Final = threading.Lock()
_before: Final = _Action()
"""What was done about the signal before."""
_installed = False


def watch(start: int, size: int) -> Watched:
    """From now on a missing page among these addresses does not end the process. Any thread may call it."""
    global _watched
    with _changing:
        _install()
        watched = Watched(start, size)
        _watched = (*_watched, watched)
    return watched


def forget(watched: Watched) -> None:
    """Must be called before the memory is unmapped: the addresses may be somebody else's after that."""
    global _watched
    with _changing:
        _watched = tuple(each for each in _watched if each is not watched)


def _install() -> None:
    """Puts the handler in place, once. On other machines a missing page ends the process as ever."""
    global _installed
    if _installed or platform.machine() not in _KNOWN_MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:
        return
    action = _Action(handler=ctypes.cast(_callback, ctypes.c_void_p), flags=_SIGINFO)
    if _libc.sigaction(int(signal.SIGBUS), ctypes.byref(action), ctypes.byref(_before)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _installed = True


def _caught(number: int, information: int, _context: int) -> None:
    """On the thread that has touched the page; when it returns, the touch is repeated."""
    try:
        address = ctypes.c_void_p.from_address(information + _ADDRESS_OFFSET).value or 0
        found = [_replace(watched) for watched in _watched if address in watched]
        handled = True in found
    except BaseException:
        # NOTE: A touch that is repeated for ever is worse than the end.
        handled = False
    if not handled:
        _libc.sigaction(number, ctypes.byref(_before), None)


def _replace(watched: Watched) -> bool:
    """All of the memory at once: one signal for each lost mapping, however large."""
    watched.is_lost = True
    size = watched.end - watched.start
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
    found = _libc.mmap(watched.start, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    return bool(found == watched.start)


_callback: Final = _Handler(_caught)
