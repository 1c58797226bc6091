"""Files written from and read into several buffers at once, past the page cache if the file system does that."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from ctypes import addressof, c_char
from typing import Final

_PAGE: Final = 4096
_PIECE: Final = 2 << 20
"""PERF: Read at once. It stays in the processor's cache for who looks at it next; smaller ones cost more calls."""
_MOST_BUFFERS: Final = 1024
"""Of one call."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_offset: Final = ctypes.c_int64


def size_of(buffers: Sequence[memoryview]) -> int:
    return sum(len(buffer) for buffer in buffers)


def are_pages(buffers: Sequence[memoryview]) -> bool:
    """Whether all begin and end with a page, as direct I/O wants it. Read-only buffers do not tell where they are."""
    return all(_is_pages(buffer) for buffer in buffers if len(buffer))


def make_direct(descriptor: int) -> None:
    """Lets the file's bytes go past the page cache, unless the file system cannot."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, _flags(descriptor) | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def allocate(descriptor: int, size: int) -> None:
    """Takes room for `size` bytes of a new file at once, where the file system can do that. Raises OSError.

    PERF: ext4 then writes 2 MiB in four fifths of the time. NOTE: Not `os.posix_fallocate`, which writes all of the
    file itself where the file system cannot.
    """
    if size and _libc.fallocate64(descriptor, 0, _offset(0), _offset(size)):
        number = ctypes.get_errno()
        if number not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR):
            raise OSError(number, os.strerror(number))


def write_all(descriptor: int, buffers: Sequence[memoryview]) -> None:
    """Writes the buffers, one behind the other, from the start of the file. Raises OSError."""
    rest, offset = _filled(buffers), 0
    while rest:
        written = _call(os.pwritev, descriptor, rest, offset)
        if not written:
            raise OSError(errno.EIO, "the file takes no more bytes")
        rest, offset = _behind(rest, written), offset + written


def read_all(descriptor: int, buffers: Sequence[memoryview], filled: Callable[[memoryview], object]) -> int:
    """Fills the buffers from the start of the file, and returns how many bytes there were. Raises OSError.

    Tells of each piece as soon as it is filled.
    """
    offset = 0
    for part in _parts(buffers):
        rest = part
        while rest:
            read = _call(os.preadv, descriptor, rest, offset)
            if not read:
                return offset
            rest, offset = _behind(rest, read), offset + read
        for piece in part:
            filled(piece)
    return offset


def _is_pages(buffer: memoryview) -> bool:
    return len(buffer) % _PAGE == 0 and not buffer.readonly and addressof(c_char.from_buffer(buffer)) % _PAGE == 0


def _call(
    function: Callable[[int, Sequence[memoryview], int], int], descriptor: int, buffers: list[memoryview], offset: int
) -> int:
    """Does without direct I/O if it is refused after all: file systems differ in what they can."""
    try:
        return function(descriptor, buffers[:_MOST_BUFFERS], offset)
    except OSError as error:
        flags = _flags(descriptor)
        if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
            raise
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return function(descriptor, buffers[:_MOST_BUFFERS], offset)


def _flags(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


def _parts(buffers: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """Pieces of the buffers, in order: those that are read together, `_PIECE` bytes and what is small before them."""
    part: list[memoryview] = []
    for buffer in buffers:
        for start in range(0, len(buffer), _PIECE):
            part.append(buffer[start : start + _PIECE])
            if size_of(part) >= _PIECE:
                yield part
                part = []
    if part:
        yield part


def _filled(buffers: Sequence[memoryview]) -> list[memoryview]:
    return [buffer for buffer in buffers if len(buffer)]


def _behind(buffers: list[memoryview], size: int) -> list[memoryview]:
    """What is left of the buffers behind their first `size` bytes."""
    for index, buffer in enumerate(buffers):
        if size < len(buffer):
            return [buffer[size:], *buffers[index + 1 :]]
        size -= len(buffer)
    return []
